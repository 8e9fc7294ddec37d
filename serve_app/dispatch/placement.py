"""Which replica a lane goes to: one that has its checkpoint, steps its shape, is fast and little busy. Pure."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from deployments.dispatch import ReplicaLoad
from deployments.engine.types import Priority
from serve_app.dispatch.backlog import WaitingLane

# a checkpoint that lanes wait for stays on its replica for so long at least, as in the engine's admission
_HOLD_S = 30.0

# a row that takes less than so many times the fastest replica's is as fast: the rest is noise, and batches' sizes
_AS_FAST = 1.3


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica as a lane sees it.

    Attributes:
        load: What it holds.
        limit: Most UNet rows of a step of the lane's group.
        row_s: Seconds that a row of such a step takes at best; 0 while nobody knows.
        checkpoints: Those that it will hold.
        spare: There is room for one more checkpoint.
        settled_s: Seconds since it last had to change one.
    """

    load: ReplicaLoad
    limit: int
    row_s: float
    checkpoints: Collection[str]
    spare: bool
    settled_s: float


def choose(
    lane: WaitingLane,
    candidates: Collection[Candidate],
    wanted: Mapping[str, int],
    *,
    is_held: Callable[[], bool],
    waited_s: float,
    patience_s: float,
) -> Candidate | None:
    """The replica that the lane goes to now; None lets it wait.

    A replica changes its checkpoint for a lane where nobody waits for those that it holds. Where lanes wait for them,
    it changes for a lane whose checkpoint no replica has, after that has waited for long.

    Args:
        lane: the lane.
        candidates: the replicas of its stage, or some of them.
        wanted: lanes that wait, by checkpoint.
        is_held: whether any replica of the stage has the lane's checkpoint, or will.
        waited_s: seconds that the lane has waited.
        patience_s: a busy replica changes no more often.
    """
    checkpoint = lane.group.checkpoint
    roomy = [each for each in candidates if each.load.takes(lane.rows, each.limit, lane.priority)]
    fastest_s = min((each.row_s for each in roomy if each.row_s), default=0.0)
    holders = [each for each in roomy if checkpoint in each.checkpoints]
    spare = [each for each in roomy if each.spare]
    idle = [each for each in roomy if not each.load.groups and not _waiting_for(each, wanted)]
    best = min(holders or spare or idle, key=lambda each: _cost(lane, each, fastest_s), default=None)
    if best is not None:
        return best
    hold_s = patience_s if lane.priority is Priority.INTERACTIVE else max(patience_s, _HOLD_S)
    unheld = waited_s >= hold_s and not is_held()
    changing = [
        each
        for each in roomy
        if each.settled_s >= (hold_s if _waiting_for(each, wanted) else patience_s)
        and (unheld or not _waiting_for(each, wanted))
    ]
    # the one that fewest wait for, and of two the one that has changed last: the other keeps what it has
    return min(changing, key=lambda each: (_waiting_for(each, wanted), each.settled_s), default=None)


def _waiting_for(candidate: Candidate, wanted: Mapping[str, int]) -> int:
    return sum(wanted.get(name, 0) for name in candidate.checkpoints)


def _cost(lane: WaitingLane, candidate: Candidate, fastest_s: float) -> tuple[bool, float]:
    """Less is better: lanes of another shape would take turns with this one; then the time that its lanes take."""
    mixed = bool(candidate.load.groups) and lane.group not in candidate.load.groups
    slower = candidate.row_s / fastest_s if candidate.row_s and fastest_s else 1.0
    batches = candidate.load.batches() + lane.rows / candidate.limit
    return mixed, batches * (slower if slower > _AS_FAST else 1.0)
