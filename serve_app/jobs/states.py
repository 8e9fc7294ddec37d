"""The states of a job and its transitions.

The store changes states only by `move`; the tests use the table as their model.

    queued ──> running ──> complete | failed | cancelled | blocked
      │          │  ▲
      │          └──┘  adopted by another owner after its lease ended; handed back: running ──> queued
      └──────> cancelled
"""

from enum import StrEnum


class JobState(StrEnum):
    """The state of a job.

    Attributes:
        QUEUED: accepted, without an owner.
        RUNNING: an owner has a lease on it.
        COMPLETE: at least one image may be seen.
        BLOCKED: it ran, and every image was withheld.
    """

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELLED = "cancelled"
    BLOCKED = "blocked"

    @property
    def terminal(self) -> bool:
        """Whether nothing follows this state."""
        return not TRANSITIONS[self]


ENDS = frozenset({JobState.COMPLETE, JobState.FAILED, JobState.CANCELLED, JobState.BLOCKED})
UNFINISHED = frozenset({JobState.QUEUED, JobState.RUNNING})

# running -> running is adoption: a new owner, a higher fence
TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.RUNNING, JobState.CANCELLED}),
    JobState.RUNNING: frozenset({JobState.RUNNING, JobState.QUEUED}) | ENDS,
    JobState.COMPLETE: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
    JobState.BLOCKED: frozenset(),
}


def move(source: JobState, target: JobState) -> JobState:
    """`target`, if it may follow `source`. Raises ValueError if it may not."""
    if target not in TRANSITIONS[source]:
        raise ValueError(f"a job can't go from {source} to {target}")
    return target
