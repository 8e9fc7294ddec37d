"""What routers and replicas of a denoising stage say to each other: where a lane goes, how busy a replica is.

A replica takes what it can step now and about one batch more. The rest waits in the routers, so that a replica that
comes finds work, and a later request of a higher class needn't wait behind earlier ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from deployments.engine.types import DenoiseRequest, Priority

# a replica holds so many full batches: the one that it steps, and one that takes its place
BATCHES = 2.0


@dataclass(frozen=True, slots=True)
class Dispatch:
    """How a lane comes to a replica.

    Attributes:
        sender: The router that sends it, and wants to hear of the replica's load.
        replica: The replica that it is for, by Serve's unique id; "" is any.
    """

    sender: str
    replica: str = ""


class LaneGroup(NamedTuple):
    """What lanes must have in common to share steps, as far as their requests tell it."""

    checkpoint: str
    width: int
    height: int
    reproducible: bool

    @classmethod
    def of(cls, request: DenoiseRequest) -> "LaneGroup":
        """The group of a request's lane."""
        return cls(request.checkpoint, request.width, request.height, request.reproducible)


def rows_of(request: DenoiseRequest) -> int:
    """UNet rows of one step of a lane: one more with guidance."""
    return request.composed_prompts + (request.guidance_scale > 1)


class GroupLoad(NamedTuple):
    """The lanes of a group that a replica holds.

    Attributes:
        rows: UNet rows of all of them, by their class, the lowest first.
        limit: Most rows that one step of this group takes.
        row_s: Seconds that a row of such a step takes at best; 0 while nobody knows.
    """

    rows: tuple[int, ...]
    limit: int
    row_s: float = 0.0


NO_ROWS = (0,) * len(Priority)


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """What a replica holds.

    Attributes:
        replica: Serve's unique id of it.
        groups: Its lanes.
        checkpoints: Those on its device, least recently used first.
        accepted: The lane in whose stream this comes is one of its lanes.
    """

    replica: str
    groups: Mapping[LaneGroup, GroupLoad] = field(default_factory=dict)
    checkpoints: tuple[str, ...] = ()
    accepted: bool = True

    def batches(self, priority: Priority = Priority.BATCH) -> float:
        """Full batches that its lanes of this and of higher classes fill."""
        return sum(sum(group.rows[priority:]) / group.limit for group in self.groups.values())

    def takes(self, rows: int, limit: int, priority: Priority) -> bool:
        """There is room for a lane of so many rows. limit: most rows that one step of its group takes.

        Lanes of lower classes leave it theirs, and each class has room for one lane, so that none starves.
        """
        if not any(group.rows[priority] for group in self.groups.values()):
            return True
        return self.batches(priority) + rows / limit <= BATCHES
