"""A job, and its id."""

import re
import secrets
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from serve_app.jobs.states import JobState

JOB_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)

_RANDOM_BITS = 80

# of a job: the image's index, the stage's
ImageStage = tuple[int, int]


def is_job_id(text: str) -> bool:
    """Whether `text` has the form of a job's id."""
    return JOB_ID.fullmatch(text) is not None


def created_at(job_id: str) -> datetime:
    """When the job of this id was created, to the millisecond. Raises ValueError if that is after the year 9999."""
    return datetime.fromtimestamp((int(job_id, 16) >> _RANDOM_BITS) / 1000, UTC)


class JobIds:
    """Creates ids: 48 bits of milliseconds, 80 random bits, as 32 hex digits.

    They sort by creation: strictly within one process (in one millisecond the next id is the last plus a random
    stride), as well as clocks agree between processes. Each has at least 40 new random bits, so none can be guessed.
    """

    def __init__(self) -> None:
        self._last = 0
        self._turn = threading.Lock()

    def new(self, now: datetime) -> str:
        """An id for a job that is created `now`."""
        fresh = (int(now.timestamp() * 1000) << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)
        with self._turn:
            if fresh <= self._last or fresh >> _RANDOM_BITS == self._last >> _RANDOM_BITS:
                fresh = self._last + 1 + secrets.randbits(40)
            self._last = fresh
        return f"{fresh:032x}"


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the store at one moment.

    Attributes:
        id: 32 hex digits, sortable by creation.
        tenant: its owner; "" without tenants.
        request: the resolved request as JSON.
        result: as JSON, once there is one.
        step, steps: UNet evaluations done and planned, over all images and stages.
        images_done: finished images.
        started_at: of the first attempt; all times are UTC.
        owner: the process that runs it.
        lease_until: when the claim ends without another sign of life.
        fence: grows with every claim; a write must carry the present one.
        attempts: claims, without those that were handed back.
        cancel_requested: whether its owner must end it at the next step.
        work_s: device seconds expected when it was accepted; None if unknown.
        device_s: device seconds that its last attempt was charged.
        key_id: of the API key that they count for, if any.
    """

    id: str
    tenant: str
    state: JobState
    request: dict[str, Any]
    result: dict[str, Any] | None
    error_code: str | None
    error_message: str | None
    step: int
    steps: int
    images_done: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    owner: str | None
    fence: int
    lease_until: datetime | None
    attempts: int
    cancel_requested: bool
    work_s: float | None = None
    device_s: float = 0.0
    key_id: str | None = None


@dataclass(frozen=True, slots=True)
class JobPage:
    """Jobs, newest first; `next_cursor` requests the next page, None at the end."""

    jobs: tuple[Job, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class JobProgress:
    """The progress of an attempt at a job; fields as in Job."""

    step: int
    steps: int
    images_done: int
    device_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Held:
    """The answer to an owner's write about its jobs.

    Attributes:
        kept: jobs that are still its own.
        lost: jobs that are another's by now, or have ended: drop them.
        cancel_requested: those of `kept` that must end.
    """

    kept: frozenset[str]
    lost: frozenset[str]
    cancel_requested: frozenset[str]


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How many jobs wait and how many run."""

    queued: int
    running: int


def utc_now() -> datetime:
    """The present time in UTC."""
    return datetime.now(UTC)
