"""A job as its readers see it, and its id."""

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
    """`text` has the form of a job's id; it says nothing about whether there is such a job."""
    return JOB_ID.fullmatch(text) is not None


def created_at(job_id: str) -> datetime:
    """When the job of this id was created, to the millisecond; the id must have the form of one.

    Raises ValueError for one that no clock has given: it lies after the year 9999.
    """
    return datetime.fromtimestamp((int(job_id, 16) >> _RANDOM_BITS) / 1000, UTC)


class JobIds:
    """New ids: 48 bits of milliseconds, 80 random bits, as 32 hex digits.

    They sort by creation: within one process strictly (in the same millisecond the next id is the last plus a
    random stride), between processes as well as their clocks agree. They can't be guessed: each adds at least
    40 random bits to the last.
    """

    def __init__(self) -> None:
        self._last = 0
        self._turn = threading.Lock()

    def new(self, now: datetime) -> str:
        """An id for a job created `now`."""
        fresh = (int(now.timestamp() * 1000) << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)
        with self._turn:
            if fresh <= self._last or fresh >> _RANDOM_BITS == self._last >> _RANDOM_BITS:
                fresh = self._last + 1 + secrets.randbits(40)
            self._last = fresh
        return f"{fresh:032x}"


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the store at one moment.

    id: 32 hex digits, sortable by creation. tenant: whose it is ("" where there are no tenants).
    request: the resolved generation request as JSON. result: as JSON, where it has one.
    error_code, error_message: set where it failed.
    step, steps: UNet evaluations done and planned, over all images and stages. images_done: finished images.
    created_at, started_at, finished_at: with UTC as their zone; started_at is the first attempt's.
    owner, lease_until: who runs it, and until when without another sign of life.
    fence: raised by every claim; a write must bring the present one.
    attempts: how often it was started, hand-overs not counted.
    cancel_requested: its owner is to end it at the next step.
    work_s: device seconds that it was expected to take when it was accepted, None where nobody knew.
    device_s: device seconds that its last attempt was charged. key_id: of the API key that they count for, if any.
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
    """Jobs, newest first; `next_cursor` gets the page after this one, None at the end."""

    jobs: tuple[Job, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class JobProgress:
    """How far a job is: UNet evaluations done and planned over all its images and stages, finished images.

    device_s: device seconds that this attempt at it was charged.
    """

    step: int
    steps: int
    images_done: int
    device_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Held:
    """What an owner learns of the jobs that it holds when it writes.

    kept: still its own. lost: another's by now, or ended: drop them. cancel_requested: of the kept ones, those to end.
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
    """This moment, with UTC as its zone."""
    return datetime.now(UTC)
