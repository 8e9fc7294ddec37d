"""What routers want of a stage, as it comes to Serve's autoscaling policy.

Work waits in the routers, which the policy can't see. Each router sends its sums to any one replica of the stage, once
a second while there are some. The replica passes them on with its own metrics, by Serve's `record_autoscaling_stats`;
autoscaling.py reads them in the controller.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields

# a router reports every second: older sums are of one that has gone, or that reports to another replica now
_FRESH_S = 5.0
# zeros are passed on for so long, so that the last sample which the policy sees of a router isn't its last work
_REMEMBERED_S = 120.0

_SEPARATOR = "/"


@dataclass(frozen=True, slots=True)
class Demand:
    """A router's unfinished work for a stage, that which replicas hold included.

    Attributes:
        router: Its id.
        work_s: Device seconds, as far as they can be predicted.
        lanes: Images.
        replicas: Replicas that it takes for every image to be drawn before its deadline; more than is there where
            images would be late.
    """

    router: str
    work_s: float
    lanes: float
    replicas: float


class DemandBoard:
    """The latest sums of each router that reports to this replica."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._demands: dict[str, tuple[Demand, float]] = {}

    def report(self, demand: Demand) -> None:
        """A router's newest sums."""
        self._demands[demand.router] = demand, self._clock()

    def metrics(self) -> dict[str, float]:
        """All sums by "<name>/<router>", zeros where they are old."""
        now = self._clock()
        self._demands = {router: known for router, known in self._demands.items() if now - known[1] < _REMEMBERED_S}
        return {
            f"{field.name}{_SEPARATOR}{router}": getattr(demand, field.name) if now - reported < _FRESH_S else 0.0
            for router, (demand, reported) in self._demands.items()
            for field in fields(Demand)
            if field.name != "router"
        }


def router_of(metric: str, name: str) -> str | None:
    """The router whose `name` this metric is; None where it is another metric."""
    kind, separator, router = metric.partition(_SEPARATOR)
    return router if separator and kind == name else None
