"""The job store: every change of a job is one transaction.

states.py has the legal transitions, leases.py the writes of owners. Every method raises StoreUnavailable if the
database can't be reached.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from serve_app.batches.batch import BatchLine, LinePlace
from serve_app.errors import UnknownJob
from serve_app.jobs.db import batch_rows, idempotency, outbox, queue_limits
from serve_app.jobs.db.batch_rows import BatchStore
from serve_app.jobs.db.cost_rows import CostStore
from serve_app.jobs.db.database import Database, keep_others_out, reads, writes
from serve_app.jobs.db.file_rows import FileStore
from serve_app.jobs.db.idempotency import RequestKey
from serve_app.jobs.db.leases import NOBODYS, LeaseStore, forget_snapshots, job_of
from serve_app.jobs.db.outbox import Outbox, Webhook
from serve_app.jobs.db.queue_limits import NO_BOUNDS, Demand
from serve_app.jobs.db.registry_rows import RegistryStore
from serve_app.jobs.db.schema import jobs
from serve_app.jobs.db.usage_rows import UsageStore
from serve_app.jobs.job import Job, JobIds, JobPage, QueueDepth, is_job_id, utc_now
from serve_app.jobs.states import ENDS, UNFINISHED, JobState, move


class JobStore(LeaseStore):
    """Jobs in a database; several stores, in several processes, may share one.

    Args:
        url: of the database, in SQLAlchemy's form.
        clock: the present time, with a zone; leases and the order of jobs go by it.

    Attributes:
        outbox: the webhooks of its jobs.
        costs: learned costs of kinds of work.
        usage: what tenants used, by day.
        batches: batches of jobs.
        files: of tenants.
        registry: changes of models at run time.
    """

    def __init__(self, url: str, clock: Callable[[], datetime] = utc_now) -> None:
        super().__init__(Database(url), clock)
        self.outbox = Outbox(self._database, clock)
        self.costs = CostStore(self._database, clock)
        self.usage = UsageStore(self._database, clock)
        self.batches = BatchStore(self._database, clock)
        self.files = FileStore(self._database, clock)
        self.registry = RegistryStore(self._database, clock)
        self._ids = JobIds()

    async def open(self) -> None:
        """Create the tables or bring them up to date; must be called first."""
        await self._database.open()

    async def close(self) -> None:
        """Close every connection."""
        await self._database.close()

    def new_id(self) -> str:
        """An id for a job that is created later, for files that must be there before it."""
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
        line: LinePlace | None = None,
    ) -> tuple[Job, bool]:
        """Create the job of a request, or return the one that it became before, even if the queue is full.

        Counting and inserting are one transaction, so that the bounds hold exactly.

        Args:
            request: the resolved request as JSON.
            key: of a request that may come again; None for a new one.
            tenant: the job's owner.
            max_queued: most unfinished jobs.
            demand: the job's work and its other bounds.
            job_id: of the new job, from `new_id`.
            webhook: to call when the job has ended.
            line: of a batch that becomes this job.

        Returns:
            The job, and whether the request had come before.

        Raises:
            IdempotencyMismatch: the key was used for another request.
            QueueFull: `max_queued` jobs are unfinished; and what else `queue_limits.check` raises.
            StaleLease: its batch is no longer in progress under this claim.
        """
        keep_others_out(connection)
        known = None if key is None else idempotency.known(connection, tenant, key)
        if known is not None:
            return _get(connection, known, tenant), True
        now = self._clock()
        if line is not None:
            batch_rows.check_place(connection, line, demand)
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
        if line is not None:
            batch_rows.note(connection, line, BatchLine(job.id))
        return job, False

    @writes
    def leave(self, connection: Connection, job_id: str, fingerprint: str, window_s: float) -> datetime:
        """Leave a job to the next request with this fingerprint; returns until when."""
        now = self._clock()
        until = now + timedelta(seconds=window_s)
        idempotency.leave(connection, job_id, fingerprint, now=now, until=until)
        return until

    @writes
    def take_over(self, connection: Connection, fingerprint: str, *, tenant: str) -> Job | None:
        """Take the oldest job that was left to requests with this fingerprint; None if there is none."""
        job_id = idempotency.take(connection, fingerprint, self._clock())
        return None if job_id is None else _get(connection, job_id, tenant)

    @writes
    def give_up(self, connection: Connection, job_id: str, until: datetime) -> bool:
        """Leave a job no longer that was left until then; False if it was taken over."""
        return idempotency.give_up(connection, job_id, until)

    @reads
    def get(self, connection: Connection, job_id: str, *, tenant: str | None = None) -> Job:
        """The job as it is now. Raises UnknownJob, also for another tenant's job unless `tenant` is None."""
        return _get(connection, job_id, tenant)

    @reads
    def page(
        self, connection: Connection, *, tenant: str | None, limit: int, cursor: str | None = None, id_end: str = ""
    ) -> JobPage:
        """A tenant's jobs (None: all tenants') whose ids end so, newest first. An invalid cursor gets an empty page."""
        statement = select(jobs).order_by(jobs.c.id.desc()).limit(limit + 1)
        if tenant is not None:
            statement = statement.where(jobs.c.tenant == tenant)
        if cursor is not None:
            if not is_job_id(cursor):
                return JobPage((), None)
            statement = statement.where(jobs.c.id < cursor)
        if id_end:
            statement = statement.where(jobs.c.id.endswith(id_end, autoescape=True))
        rows = [job_of(row) for row in connection.execute(statement)]
        page = tuple(rows[:limit])
        return JobPage(page, page[-1].id if len(rows) > limit else None)

    @reads
    def depth(self, connection: Connection) -> QueueDepth:
        """How many jobs wait and how many run; also a cheap check that the database answers."""
        statement = select(jobs.c.state, func.count().label("jobs")).where(_among(UNFINISHED)).group_by(jobs.c.state)
        counts = {row.state: row.jobs for row in connection.execute(statement)}
        return QueueDepth(counts.get(JobState.QUEUED, 0), counts.get(JobState.RUNNING, 0))

    @reads
    def unfinished_by_model(self, connection: Connection) -> Mapping[str, int]:
        """How many unfinished jobs draw with each model, in any pass, as far as there are any."""
        first = jobs.c.request["model"].as_string().label("first")
        second = jobs.c.request[("hires", "model")].as_string().label("second")
        models = select(first, second).where(_among(UNFINISHED)).subquery()
        statement = select(models, func.count().label("jobs")).group_by(models.c.first, models.c.second)
        counts: Counter[str] = Counter()
        for row in connection.execute(statement):
            for name in {row.first, row.second} - {None}:
                counts[name] += row.jobs
        return dict(counts)

    @reads
    def queued(self, connection: Connection, limit: int = 1000) -> tuple[Job, ...]:
        """Queued jobs, the oldest first."""
        return _find(connection, limit, jobs.c.state == JobState.QUEUED)

    @reads
    def expired(self, connection: Connection, limit: int = 100) -> tuple[Job, ...]:
        """Running jobs whose lease has ended, the oldest first."""
        return _find(connection, limit, jobs.c.state == JobState.RUNNING, jobs.c.lease_until < self._clock())

    @reads
    def finished_before(self, connection: Connection, moment: datetime, limit: int = 100) -> tuple[Job, ...]:
        """Jobs that ended before `moment`, the first created first; a batch's are kept as long as the batch."""
        return _find(connection, limit, _among(ENDS), jobs.c.finished_at < moment, batch_rows.of_no_batch())

    @reads
    def known(self, connection: Connection, job_ids: Collection[str]) -> Mapping[str, Job]:
        """The existing ones of these jobs, by id."""
        return {job.id: job for job in _find(connection, len(job_ids), jobs.c.id.in_(sorted(job_ids)))}

    @writes
    def cancel(self, connection: Connection, job_id: str, *, tenant: str | None = None) -> Job:
        """Cancel a job: a queued one ends at once, a running one's owner ends it, an ended one stays as it is.

        Raises UnknownJob, also for another tenant's job unless `tenant` is None.
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
        """Delete a job that has ended; False if there is none, or it hasn't ended."""
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
    """The jobs that meet all conditions, the first created first."""
    rows = connection.execute(select(jobs).where(*conditions).order_by(jobs.c.id).limit(limit))
    return tuple(job_of(row) for row in rows)
