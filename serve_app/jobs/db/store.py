"""The job store: every change of a job is one transaction.

Which states may follow which is in states.py, what owners do in leases.py. Every method raises StoreUnavailable when
the database can't be reached.
"""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from serve_app.errors import UnknownJob
from serve_app.jobs.db import idempotency, outbox, queue_limits
from serve_app.jobs.db.cost_rows import CostStore
from serve_app.jobs.db.database import Database, keep_others_out, reads, writes
from serve_app.jobs.db.idempotency import RequestKey
from serve_app.jobs.db.leases import NOBODYS, LeaseStore, forget_snapshots, job_of
from serve_app.jobs.db.outbox import Outbox, Webhook
from serve_app.jobs.db.queue_limits import NO_BOUNDS, Demand
from serve_app.jobs.db.schema import jobs
from serve_app.jobs.job import Job, JobIds, JobPage, QueueDepth, is_job_id, utc_now
from serve_app.jobs.states import ENDS, UNFINISHED, JobState, move


class JobStore(LeaseStore):
    """Jobs in a database; several stores, in several processes, may share one.

    outbox: the webhooks of its jobs. costs: what kinds of work have cost.

    Args:
        url: SQLAlchemy's, of the database.
        clock: This moment, with a zone; leases and the order of jobs go by it.
    """

    def __init__(self, url: str, clock: Callable[[], datetime] = utc_now) -> None:
        super().__init__(Database(url), clock)
        self.outbox = Outbox(self._database, clock)
        self.costs = CostStore(self._database, clock)
        self._ids = JobIds()

    async def open(self) -> None:
        """Create the tables or bring them up to date; to be called before anything else."""
        await self._database.open()

    async def close(self) -> None:
        """Close every connection."""
        await self._database.close()

    def new_id(self) -> str:
        """An id for a job that is about to be created, for what has to be there before it is."""
        return self._ids.new(self._clock())

    @writes
    def create(
        self,
        connection: Connection,
        request: dict[str, Any],
        *,
        key: RequestKey | None = None,
        tenant: str = "",
        max_queued: int,
        demand: Demand = NO_BOUNDS,
        job_id: str | None = None,
        webhook: Webhook | None = None,
    ) -> tuple[Job, bool]:
        """The job of a request that may come again, and whether it had come before; also when the queue is full.

        Counting and inserting are one transaction, so that the bounds hold exactly.

        Args:
            request: The resolved request as JSON.
            key: Names the request; None: it is a new one.
            tenant: Whose it is.
            max_queued: Most unfinished jobs.
            demand: What it asks for besides, and its other bounds.
            job_id: The new job's, where it was chosen before.
            webhook: To be called when the job has ended.

        Raises:
            IdempotencyMismatch: The key was another request's.
            QueueFull: `max_queued` jobs are unfinished; and whatever else `queue_limits.check` refuses.
        """
        keep_others_out(connection)
        known = None if key is None else idempotency.known(connection, tenant, key)
        if known is not None:
            return _get(connection, known, tenant), True
        now = self._clock()
        queue_limits.check(connection, tenant, max_queued, demand, now)
        values = {
            "id": job_id or self._ids.new(now),
            "tenant": tenant,
            "state": JobState.QUEUED,
            "request": request,
            "created_at": now,
            "work_s": demand.work_s,
            "key_id": demand.key_id,
        }
        job = job_of(connection.execute(insert(jobs).values(values).returning(jobs)).one())
        if webhook is not None:
            outbox.add(connection, job.id, webhook, now)
        if key is not None:
            idempotency.remember(connection, tenant, key, job.id)
        return job, False

    @writes
    def leave(self, connection: Connection, job_id: str, fingerprint: str, window_s: float) -> datetime:
        """Leave a job to the next request of its fingerprint; the answer is until when."""
        now = self._clock()
        until = now + timedelta(seconds=window_s)
        idempotency.leave(connection, job_id, fingerprint, now=now, until=until)
        return until

    @writes
    def take_over(self, connection: Connection, fingerprint: str, *, tenant: str) -> Job | None:
        """The oldest job that was left to requests of this fingerprint; it is nobody else's then."""
        job_id = idempotency.take(connection, fingerprint, self._clock())
        return None if job_id is None else _get(connection, job_id, tenant)

    @writes
    def give_up(self, connection: Connection, job_id: str, until: datetime) -> bool:
        """Leave a job no longer that was left until then; False when somebody has taken it over."""
        return idempotency.give_up(connection, job_id, until)

    @reads
    def get(self, connection: Connection, job_id: str, *, tenant: str | None = None) -> Job:
        """The job as it is now. Raises UnknownJob, also for another tenant's (None: whosever it is)."""
        return _get(connection, job_id, tenant)

    @reads
    def page(self, connection: Connection, *, tenant: str | None, limit: int, cursor: str | None = None) -> JobPage:
        """A tenant's jobs (None: everybody's), newest first. A cursor of no job's form gets an empty page."""
        statement = select(jobs).order_by(jobs.c.id.desc()).limit(limit + 1)
        if tenant is not None:
            statement = statement.where(jobs.c.tenant == tenant)
        if cursor is not None:
            if not is_job_id(cursor):
                return JobPage((), None)
            statement = statement.where(jobs.c.id < cursor)
        rows = [job_of(row) for row in connection.execute(statement)]
        page = tuple(rows[:limit])
        return JobPage(page, page[-1].id if len(rows) > limit else None)

    @reads
    def depth(self, connection: Connection) -> QueueDepth:
        """How many jobs wait and how many run; also the cheap question whether the database answers."""
        statement = select(jobs.c.state, func.count().label("jobs")).where(_among(UNFINISHED)).group_by(jobs.c.state)
        counts = {row.state: row.jobs for row in connection.execute(statement)}
        return QueueDepth(counts.get(JobState.QUEUED, 0), counts.get(JobState.RUNNING, 0))

    @reads
    def queued(self, connection: Connection, limit: int = 1000) -> tuple[Job, ...]:
        """Jobs that are nobody's, the oldest first."""
        return _find(connection, limit, jobs.c.state == JobState.QUEUED)

    @reads
    def expired(self, connection: Connection, limit: int = 100) -> tuple[Job, ...]:
        """Running jobs whose lease has ended, the oldest first: to be claimed or settled."""
        return _find(connection, limit, jobs.c.state == JobState.RUNNING, jobs.c.lease_until < self._clock())

    @reads
    def finished_before(self, connection: Connection, moment: datetime, limit: int = 100) -> tuple[Job, ...]:
        """Jobs that ended before `moment`, the oldest first."""
        return _find(connection, limit, _among(ENDS), jobs.c.finished_at < moment)

    @reads
    def known(self, connection: Connection, job_ids: Collection[str]) -> Mapping[str, Job]:
        """Those of these jobs that there are, by id."""
        return {job.id: job for job in _find(connection, len(job_ids), jobs.c.id.in_(sorted(job_ids)))}

    @writes
    def cancel(self, connection: Connection, job_id: str, *, tenant: str | None = None) -> Job:
        """Cancel a job: a queued one ends at once, a running one's owner is told, an ended one is left.

        Raises UnknownJob, also for another tenant's.
        """
        _get(connection, job_id, tenant)
        cancel = update(jobs).where(jobs.c.id == job_id).values(cancel_requested=True)
        ended = {"state": move(JobState.QUEUED, JobState.CANCELLED), "finished_at": self._clock(), **NOBODYS}
        connection.execute(cancel.where(jobs.c.state == JobState.QUEUED).values(ended))
        connection.execute(cancel.where(jobs.c.state == JobState.RUNNING))
        job = _get(connection, job_id, tenant)
        forget_snapshots(connection, job)
        return job

    @writes
    def delete(self, connection: Connection, job_id: str) -> bool:
        """Forget a job that has ended; False when there is none, or it hasn't."""
        if connection.execute(delete(jobs).where(jobs.c.id == job_id, _among(ENDS))).rowcount != 1:
            return False
        idempotency.forget(connection, job_id)
        outbox.forget(connection, job_id)
        return True


def _among(states: frozenset[JobState]) -> ColumnElement[bool]:
    return jobs.c.state.in_(sorted(states))


def _get(connection: Connection, job_id: str, tenant: str | None) -> Job:
    row = None
    if is_job_id(job_id):
        row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
    if row is None or (tenant is not None and row.tenant != tenant):
        raise UnknownJob("no such job")
    return job_of(row)


def _find(connection: Connection, limit: int, *conditions: ColumnElement[bool]) -> tuple[Job, ...]:
    """The jobs of which all of this holds, the oldest first."""
    rows = connection.execute(select(jobs).where(*conditions).order_by(jobs.c.id).limit(limit))
    return tuple(job_of(row) for row in rows)
