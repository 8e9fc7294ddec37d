"""What an owner holds: claims, signs of life, progress, all under the fence of its claim.

Every statement here writes rows of jobs that are still their owner's, and no others.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, bindparam, func, or_, select, tuple_, update

from serve_app.errors import StaleLease
from serve_app.jobs.db.job_rows import job_of
from serve_app.jobs.db.schema import jobs
from serve_app.jobs.job import Held, Job, JobProgress
from serve_app.jobs.states import JobState

# most jobs named in one statement
_CHUNK = 200

# what a job's row says that nobody holds
NOBODYS: dict[str, Any] = {"owner": None, "lease_until": None, "heartbeat_at": None}


def claim(
    connection: Connection,
    which: ColumnElement[bool],
    *,
    owner: str,
    lease_s: float,
    max_attempts: int,
    now: datetime,
) -> Job | None:
    """Take a job that is nobody's, or whose owner's lease has ended: one UPDATE, won by one claimant."""
    abandoned = (jobs.c.state == JobState.RUNNING) & (jobs.c.lease_until < now)
    takeable = or_(jobs.c.state == JobState.QUEUED, abandoned & (jobs.c.attempts < max_attempts))
    statement = (
        update(jobs)
        .where(which, takeable, jobs.c.cancel_requested.is_(False))
        .values(
            state=JobState.RUNNING,
            owner=owner,
            fence=jobs.c.fence + 1,
            attempts=jobs.c.attempts + 1,
            lease_until=now + timedelta(seconds=lease_s),
            heartbeat_at=now,
            started_at=func.coalesce(jobs.c.started_at, now),
            step=0,
            images_done=0,
            device_s=0.0,
        )
        .returning(jobs)
    )
    row = connection.execute(statement).one_or_none()
    return None if row is None else job_of(row)


def heartbeat(connection: Connection, held: Mapping[str, int], *, lease_s: float, now: datetime) -> Held:
    """A sign of life for these jobs (id -> fence); their leases run anew from now."""
    kept: dict[str, bool] = {}
    for still_held in _all_under(held):
        statement = (
            update(jobs)
            .where(still_held)
            .values(heartbeat_at=now, lease_until=now + timedelta(seconds=lease_s))
            .returning(jobs.c.id, jobs.c.cancel_requested)
        )
        kept |= {row.id: row.cancel_requested for row in connection.execute(statement)}
    return _held(held, kept)


def progress(connection: Connection, fences: Mapping[str, int], reached: Mapping[str, JobProgress]) -> Held:
    """Note how far these jobs are (id -> fence, id -> progress)."""
    kept: dict[str, bool] = {}
    if not fences:
        return _held(fences, kept)
    statement = (
        update(jobs)
        .where(
            jobs.c.id == bindparam("of_id"),
            jobs.c.fence == bindparam("of_fence"),
            jobs.c.state == JobState.RUNNING,
        )
        .values(
            step=bindparam("to_step"),
            steps=bindparam("to_steps"),
            images_done=bindparam("to_images"),
            device_s=bindparam("to_device_s"),
        )
    )
    rows = [
        {
            "of_id": job_id,
            "of_fence": fence,
            "to_step": reached[job_id].step,
            "to_steps": reached[job_id].steps,
            "to_images": reached[job_id].images_done,
            "to_device_s": reached[job_id].device_s,
        }
        for job_id, fence in fences.items()
    ]
    connection.execute(statement, rows)
    for still_held in _all_under(fences):
        found = connection.execute(select(jobs.c.id, jobs.c.cancel_requested).where(still_held))
        kept |= {row.id: row.cancel_requested for row in found}
    return _held(fences, kept)


def change(connection: Connection, job_id: str, fence: int, **values: Any) -> Job:
    """Write columns of one job. Raises StaleLease."""
    row = connection.execute(update(jobs).where(*_under(job_id, fence)).values(**values).returning(jobs)).one_or_none()
    if row is None:
        raise _stale(job_id, fence)
    return job_of(row)


def check(connection: Connection, job_id: str, fence: int) -> None:
    """The job stays its owner's until the end of this transaction. Raises StaleLease where it isn't."""
    held = select(jobs.c.id).where(*_under(job_id, fence)).with_for_update()
    if connection.execute(held).one_or_none() is None:
        raise _stale(job_id, fence)


def _under(job_id: str, fence: int) -> tuple[ColumnElement[bool], ...]:
    """Conditions that hold for a job which is still its owner's."""
    return jobs.c.id == job_id, jobs.c.fence == fence, jobs.c.state == JobState.RUNNING


def _all_under(held: Mapping[str, int]) -> Iterator[ColumnElement[bool]]:
    """Conditions that together hold for the jobs which are still their owner's (id -> fence)."""
    items = list(held.items())
    for start in range(0, len(items), _CHUNK):
        yield tuple_(jobs.c.id, jobs.c.fence).in_(items[start : start + _CHUNK]) & (jobs.c.state == JobState.RUNNING)


def _held(held: Mapping[str, int], kept: Mapping[str, bool]) -> Held:
    """kept: job id -> whether it is to be cancelled."""
    return Held(
        kept=frozenset(kept),
        lost=frozenset(held) - frozenset(kept),
        cancel_requested=frozenset(job_id for job_id, cancel in kept.items() if cancel),
    )


def _stale(job_id: str, fence: int) -> StaleLease:
    return StaleLease(f"job {job_id} is no longer held under fence {fence}")
