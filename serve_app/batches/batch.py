"""A batch, its states and its lines.

    validating ──> in_progress ──> finalizing ──> completed
        │  │           │  └──────> expiring ────> expired
        │  │           ├─────────> failed
        │  └──> failed └─────────> cancelling ──> cancelled
        └───────────────────────────────┘

The store changes states only by `move`. OpenAI's API shows `expiring` as finalizing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal


class BatchState(StrEnum):
    """The state of a batch.

    Attributes:
        VALIDATING: its input hasn't been read to its end yet.
        IN_PROGRESS: its lines become jobs.
        FINALIZING: every line is answered, and the output is written.
        EXPIRING: its time is over, and the output is written of what was drawn.
        CANCELLING: likewise, as it was cancelled.
    """

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    EXPIRING = "expiring"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """Whether nothing follows this state."""
        return not TRANSITIONS[self]


# of a state in which no line begins any more: how it ends
ENDS_AS: Mapping[BatchState, BatchState] = {
    BatchState.FINALIZING: BatchState.COMPLETED,
    BatchState.EXPIRING: BatchState.EXPIRED,
    BatchState.CANCELLING: BatchState.CANCELLED,
}

TRANSITIONS: Mapping[BatchState, frozenset[BatchState]] = {
    BatchState.VALIDATING: frozenset({BatchState.IN_PROGRESS, BatchState.FAILED, BatchState.CANCELLING}),
    BatchState.IN_PROGRESS: frozenset({*ENDS_AS, BatchState.FAILED}),
    **{state: frozenset({end, BatchState.FAILED}) for state, end in ENDS_AS.items()},
    BatchState.COMPLETED: frozenset(),
    BatchState.FAILED: frozenset(),
    BatchState.EXPIRED: frozenset(),
    BatchState.CANCELLED: frozenset(),
}

UNFINISHED_BATCHES = frozenset(state for state, following in TRANSITIONS.items() if following)


def move(source: BatchState, target: BatchState) -> BatchState:
    """`target`, if it may follow `source`. Raises ValueError if it may not."""
    if target not in TRANSITIONS[source]:
        raise ValueError(f"a batch can't go from {source} to {target}")
    return target


@dataclass(frozen=True, slots=True)
class LineCounts:
    """What became of a batch's lines so far.

    Attributes:
        completed: have an image.
        failed: are answered with an error; not those that a cancelled or expired batch has left.
        unfinished: are jobs that haven't ended.
        device_s: device seconds of their jobs.
    """

    completed: int = 0
    failed: int = 0
    unfinished: int = 0
    device_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Batch:
    """One row of the store at one moment.

    Attributes:
        id: 32 hex digits, sortable by creation, as a job's.
        tenant: its owner; "" without tenants.
        key_id: of the API key that created it and that its jobs count for, if any.
        endpoint: what its lines are requests for.
        input_file: id of the file with its lines.
        options: of its client, as JSON: what its dialect repeats or needs for the output.
        problems: why it failed, as JSON.
        total: number of lines, once they are counted.
        completed, failed, device_s: as in LineCounts, once it has ended.
        output_file, error_file: ids of the files with its answers, if there are any.
        expires_at: when what isn't drawn yet is given up.
        begun_at: when it was in progress first; closed_at: when its last line had begun; ended_at.
        owner, fence, lease_until: as in Job.
    """

    id: str
    tenant: str
    key_id: str | None
    endpoint: str
    input_file: str
    state: BatchState
    options: dict[str, Any]
    problems: list[dict[str, Any]] | None
    total: int
    completed: int
    failed: int
    device_s: float
    output_file: str | None
    error_file: str | None
    created_at: datetime
    expires_at: datetime
    begun_at: datetime | None
    closed_at: datetime | None
    ended_at: datetime | None
    owner: str | None
    fence: int
    lease_until: datetime | None


@dataclass(frozen=True, slots=True)
class BatchPage:
    """Batches, newest first, and whether older ones follow."""

    batches: tuple[Batch, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class BatchLine:
    """What became of a line: its job, or why it became none.

    Attributes:
        job_id: of its job; None if it was refused.
        error_code, error_message, error_field: of the refusal.
    """

    job_id: str | None
    error_code: str | None = None
    error_message: str | None = None
    error_field: str | None = None


@dataclass(frozen=True, slots=True)
class LinePlace:
    """A line that is to become a job, and how many may be jobs at once.

    Attributes:
        batch_id, fence: its batch, under its owner's claim.
        line: its index.
        most: unfinished jobs of all batches; each batch has its share, and one at least.
        most_s: their device seconds, shared likewise; None for no bound.
    """

    batch_id: str
    fence: int
    line: int
    most: int
    most_s: float | None


FilePurpose = Literal["batch", "batch_output", "vision", "user_data", "matrix"]

# what clients may upload
UPLOADED: tuple[FilePurpose, ...] = ("batch", "vision", "user_data")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a tenant; its bytes are in the image store.

    Attributes:
        id: 32 hex digits, as a job's.
        filename: as its client named it.
        purpose: "matrix" for the input of a native batch, which no list shows.
        bytes: its length.
        expires_at: when it is deleted; None for never.
    """

    id: str
    tenant: str
    filename: str
    purpose: FilePurpose
    bytes: int
    created_at: datetime
    expires_at: datetime | None
