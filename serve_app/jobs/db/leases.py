"""Claims of jobs, and their owners' writes: signs of life, progress, snapshots and ends, all under a claim's fence.

`claim` is one UPDATE that raises the job's fence and starts a lease. All writes of its owner carry that fence; they
raise StaleLease, or name the job as lost, if it has another owner by now.
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
)

from serve_app.errors import StaleLease
from serve_app.jobs.db import queue_limits, usage_rows
from serve_app.jobs.db.database import Transactions, reads, writes
from serve_app.jobs.db.schema import UtcDateTime, job_states, jobs
from serve_app.jobs.job import Held, ImageStage, Job, JobProgress
from serve_app.jobs.states import JobState, move

# most jobs named in one statement
_CHUNK = 200

# columns of a job without an owner
NOBODYS: dict[str, Any] = {"owner": None, "lease_until": None}


class LeaseStore(Transactions):
    """Writes of owners, and the settling of jobs whose owner has died."""

    @writes
    def claim(
        self, connection: Connection, job_id: str, *, owner: str, lease_s: float, max_attempts: int
    ) -> Job | None:
        """Take a queued job, or one whose lease has ended, in one UPDATE that one claimant wins.

        None if there is nothing to take: another was faster, or the job has ended, must be cancelled, or was claimed
        `max_attempts` times by owners that died.
        """
        now = self._clock()
        abandoned = (jobs.c.state == JobState.RUNNING) & (jobs.c.lease_until < now)
        takeable = or_(jobs.c.state == JobState.QUEUED, abandoned & (jobs.c.attempts < max_attempts))
        statement = (
            update(jobs)
            .where(jobs.c.id == job_id, takeable, jobs.c.cancel_requested.is_(False))
            .values(
                state=JobState.RUNNING,
                owner=owner,
                fence=jobs.c.fence + 1,
                attempts=jobs.c.attempts + 1,
                lease_until=now + timedelta(seconds=lease_s),
                started_at=func.coalesce(jobs.c.started_at, now),
                step=0,
                images_done=0,
                device_s=0.0,
            )
            .returning(jobs)
        )
        row = connection.execute(statement).one_or_none()
        return None if row is None else job_of(row)

    @writes
    def heartbeat(self, connection: Connection, held: Mapping[str, int], *, lease_s: float) -> Held:
        """Renew the leases of all jobs of an owner (id -> fence).

        A lease that has ended can be renewed as long as nobody else has claimed the job.
        """
        values = {"lease_until": self._clock() + timedelta(seconds=lease_s)}
        columns = jobs.c.id, jobs.c.cancel_requested
        rows = [
            row
            for still_held in _all_under(held)
            for row in connection.execute(update(jobs).where(still_held).values(values).returning(*columns))
        ]
        return _held(held, rows)

    @writes
    def progress(self, connection: Connection, fences: Mapping[str, int], progress: Mapping[str, JobProgress]) -> Held:
        """Write the progress of an owner's jobs (id -> fence, id -> progress); leases stay as they are."""
        statement = (
            update(jobs)
            .where(
                jobs.c.id == bindparam("of_id"),
                jobs.c.fence == bindparam("of_fence"),
                jobs.c.state == JobState.RUNNING,
            )
            .values({name: bindparam(f"to_{name}") for name in _columns(JobProgress(0, 0, 0))})
        )
        values = [
            {"of_id": job_id, "of_fence": fence}
            | {f"to_{name}": value for name, value in _columns(progress[job_id]).items()}
            for job_id, fence in fences.items()
        ]
        if values:
            connection.execute(statement, values)
        columns = jobs.c.id, jobs.c.cancel_requested
        rows = [
            row for still_held in _all_under(fences) for row in connection.execute(select(*columns).where(still_held))
        ]
        return _held(fences, rows)

    @writes
    def keep(self, connection: Connection, job_id: str, fence: int, states: Mapping[ImageStage, bytes]) -> None:
        """Store snapshots of a job's images, the newest of each, until the job ends. Raises StaleLease."""
        held = select(jobs.c.id).where(*_under(job_id, fence)).with_for_update()
        if connection.execute(held).one_or_none() is None:
            raise _stale(job_id, fence)
        place = tuple_(job_states.c.image, job_states.c.stage)
        connection.execute(delete(job_states).where(job_states.c.job_id == job_id, place.in_(list(states))))
        rows = [
            {"job_id": job_id, "image": image, "stage": stage, "data": data} for (image, stage), data in states.items()
        ]
        connection.execute(insert(job_states), rows)

    @reads
    def kept(self, connection: Connection, job_id: str) -> Mapping[ImageStage, bytes]:
        """The snapshots that all owners of an unfinished job have stored."""
        rows = connection.execute(select(job_states).where(job_states.c.job_id == job_id))
        return {(row.image, row.stage): row.data for row in rows}

    @writes
    def complete(
        self, connection: Connection, job_id: str, fence: int, result: dict[str, Any], at: JobProgress | None = None
    ) -> Job:
        """End a job with its result. Raises StaleLease."""
        return self._end(connection, job_id, fence, JobState.COMPLETE, at, result=result)

    @writes
    def block(
        self, connection: Connection, job_id: str, fence: int, result: dict[str, Any], at: JobProgress | None = None
    ) -> Job:
        """End a job whose images are all withheld. Raises StaleLease."""
        return self._end(connection, job_id, fence, JobState.BLOCKED, at, result=result)

    @writes
    def fail(
        self,
        connection: Connection,
        job_id: str,
        fence: int,
        *,
        code: str,
        message: str,
        at: JobProgress | None = None,
    ) -> Job:
        """End a job with an error. Raises StaleLease."""
        error = {"error_code": code, "error_message": message}
        return self._end(connection, job_id, fence, JobState.FAILED, at, **error)

    @writes
    def cancelled(self, connection: Connection, job_id: str, fence: int, at: JobProgress | None = None) -> Job:
        """End a job as cancelled. Raises StaleLease."""
        return self._end(connection, job_id, fence, JobState.CANCELLED, at)

    @writes
    def release(self, connection: Connection, job_id: str, fence: int) -> Job:
        """Give a running job back to its old place in the queue; the attempt doesn't count.

        A job that must be cancelled ends here. Raises StaleLease.
        """
        to_cancel = jobs.c.cancel_requested.is_(True)
        queued, cancelled = move(JobState.RUNNING, JobState.QUEUED), move(JobState.RUNNING, JobState.CANCELLED)
        return _change(
            connection,
            job_id,
            fence,
            state=case((to_cancel, cancelled), else_=queued),
            finished_at=case((to_cancel, literal(self._clock(), UtcDateTime))),
            attempts=jobs.c.attempts - 1,
            step=0,
            images_done=0,
            device_s=0.0,
        )

    def _end(
        self, connection: Connection, job_id: str, fence: int, state: JobState, at: JobProgress | None, **values: Any
    ) -> Job:
        """End a job, charge its key and count its use; attempts that died with their owners aren't charged."""
        now = self._clock()
        if at is not None:
            values |= _columns(at)
        job = _change(connection, job_id, fence, state=move(JobState.RUNNING, state), finished_at=now, **values)
        usage_rows.count(connection, job, now)
        if job.key_id is not None and job.device_s > 0:
            queue_limits.charge(connection, job.key_id, job.device_s, now)
        return job

    @writes
    def settle_abandoned(self, connection: Connection, max_attempts: int) -> tuple[Job, ...]:
        """End the running jobs whose lease has ended and that can't be claimed again; returns them.

        Those that must be cancelled are; those claimed `max_attempts` times fail with attempts_exhausted. Their last
        attempt died with its owner, so it isn't charged.
        """
        now = self._clock()
        abandoned = update(jobs).where(jobs.c.state == JobState.RUNNING, jobs.c.lease_until < now)
        gone = {"finished_at": now, "fence": jobs.c.fence + 1, "device_s": 0.0, **NOBODYS}
        cancelled = abandoned.where(jobs.c.cancel_requested.is_(True)).values(
            state=move(JobState.RUNNING, JobState.CANCELLED), **gone
        )
        exhausted = abandoned.where(jobs.c.attempts >= max_attempts).values(
            state=move(JobState.RUNNING, JobState.FAILED),
            error_code="attempts_exhausted",
            error_message=f"given up after {max_attempts} attempts that ended with their process",
            **gone,
        )
        ended = tuple(
            job_of(row) for statement in (cancelled, exhausted) for row in connection.execute(statement.returning(jobs))
        )
        for job in ended:
            forget_snapshots(connection, job)
        return ended


def job_of(row: Row[Any]) -> Job:
    """The job of a row with all columns."""
    return Job(**{**row._mapping, "state": JobState(row.state)})


def forget_snapshots(connection: Connection, job: Job) -> None:
    """Delete a job's snapshots if it has ended; in the transaction that ends it."""
    if job.state.terminal:
        connection.execute(delete(job_states).where(job_states.c.job_id == job.id))


def _change(connection: Connection, job_id: str, fence: int, **values: Any) -> Job:
    """Write columns of an owner's job, which is nobody's then. Raises StaleLease."""
    statement = update(jobs).where(*_under(job_id, fence)).values(**values, **NOBODYS).returning(jobs)
    row = connection.execute(statement).one_or_none()
    if row is None:
        raise _stale(job_id, fence)
    job = job_of(row)
    forget_snapshots(connection, job)
    return job


def _columns(progress: JobProgress) -> dict[str, Any]:
    return {
        "step": progress.step,
        "steps": progress.steps,
        "images_done": progress.images_done,
        "device_s": progress.device_s,
    }


def _under(job_id: str, fence: int) -> tuple[ColumnElement[bool], ...]:
    """Conditions for a job that is still its owner's."""
    return jobs.c.id == job_id, jobs.c.fence == fence, jobs.c.state == JobState.RUNNING


def _all_under(held: Mapping[str, int]) -> Iterator[ColumnElement[bool]]:
    """Conditions, by chunks, for the jobs (id -> fence) that are still their owner's."""
    items = list(held.items())
    for start in range(0, len(items), _CHUNK):
        yield tuple_(jobs.c.id, jobs.c.fence).in_(items[start : start + _CHUNK]) & (jobs.c.state == JobState.RUNNING)


def _held(held: Mapping[str, int], rows: Iterable[Any]) -> Held:
    """The answer about `held` jobs (id -> fence), from the rows of those that are still held."""
    kept = {row.id: row.cancel_requested for row in rows}
    to_cancel = frozenset(job_id for job_id, cancel in kept.items() if cancel)
    return Held(kept=frozenset(kept), lost=frozenset(held) - frozenset(kept), cancel_requested=to_cancel)


def _stale(job_id: str, fence: int) -> StaleLease:
    return StaleLease(f"job {job_id} is no longer held under fence {fence}")
