"""How many replicas a denoising stage needs: Serve's policy hook, called in its controller ten times a second.

Serve applies the delays and bounds of AutoscalingConfig to what the policy says. Of Serve's own numbers the policy
looks at one, the requests that wait at routers' handles: they wake a stage, and keep its first replica until that can
report what routers want. Streams in flight aren't counted, so one that Serve forgets keeps no replica alive.
"""

from collections import defaultdict
from typing import Any

from ray.serve.config import AutoscalingContext

from deployments.demand import router_of


class DemandPolicy:
    """Replicas by the routers' demands.

    Args:
        target_work_s: Device seconds of unfinished work for each replica.
        target_ongoing_requests: Unfinished images for each replica, in place of the work; None goes by work.
    """

    def __init__(self, target_work_s: float, target_ongoing_requests: float | None = None) -> None:
        self._target_work_s = target_work_s
        self._target_lanes = target_ongoing_requests

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """The number of replicas that the stage needs, and no state."""
        least = 1.0 if context.total_queued_requests else 0.0
        if self._target_lanes is not None:
            return max(_total(context, "lanes") / self._target_lanes, least), {}
        return max(_total(context, "work_s") / self._target_work_s, _total(context, "replicas"), least), {}


def _total(context: AutoscalingContext, name: str) -> float:
    """Over the routers, each one's newest report; a router that several replicas know counts with the highest."""
    routers: defaultdict[str, float] = defaultdict(float)
    for metric, series_by_replica in (context.raw_metrics or {}).items():
        router = router_of(metric, name)
        if router is not None:
            newest = [series[-1].value for series in series_by_replica.values() if series]
            routers[router] = max([routers[router], *newest])
    return sum(routers.values())
