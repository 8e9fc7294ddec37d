"""The job store: every change of a job is one transaction, and every write of an owner is fenced.

An owner is whoever claimed a job: `claim` is one UPDATE that raises the job's fence and starts a lease. All
of the owner's writes carry that fence and raise StaleLease when the job has gone on without it. Which states
may follow which is in states.py. Knows nothing of HTTP, of stages or of images.

Every method raises StoreUnavailable when the database can't be reached.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
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
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.errors import StaleLease, UnknownJob
from serve_app.jobs import bounds, idempotency, quotas, state_rows
from serve_app.jobs.bounds import NO_BOUNDS, Demand
from serve_app.jobs.database import Database
from serve_app.jobs.idempotency import RequestKey
from serve_app.jobs.job import Held, Job, JobIds, JobPage, JobProgress, QueueDepth, is_job_id, utc_now
from serve_app.jobs.schema import UtcDateTime, jobs
from serve_app.jobs.state_rows import ImageStage
from serve_app.jobs.states import ENDS, UNFINISHED, JobState, move

# most jobs named in one statement
_CHUNK = 200

_NOBODYS: dict[str, Any] = {"owner": None, "lease_until": None, "heartbeat_at": None}


class JobStore:
    """Jobs in a database by an async SQLAlchemy URL; several stores, in several processes, may share one.

    clock: this moment, with a zone; leases and the order of jobs go by it.
    """

    def __init__(self, url: str, clock: Callable[[], datetime] = utc_now) -> None:
        self._database = Database(url)
        self._clock = clock
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

    async def create(
        self,
        request: dict[str, Any],
        *,
        tenant: str = "",
        max_queued: int,
        demand: Demand = NO_BOUNDS,
        job_id: str | None = None,
    ) -> Job:
        """A new queued job, under `job_id` where it is given.

        Counting and inserting are one transaction, so that the bounds hold exactly.
        Raises QueueFull when `max_queued` jobs are unfinished, and whatever else bounds.py refuses.
        """
        async with self._database.write() as connection:
            await self._database.keep_others_out(connection)
            return await self._insert(connection, request, tenant, max_queued, demand, job_id)

    async def create_once(
        self,
        request: dict[str, Any],
        *,
        key: RequestKey,
        tenant: str = "",
        max_queued: int,
        demand: Demand = NO_BOUNDS,
        job_id: str | None = None,
    ) -> tuple[Job, bool]:
        """The job of a request that may come again, and whether it had come before; also when the queue is full.

        Raises IdempotencyMismatch, and as `create` does.
        """
        async with self._database.write() as connection:
            await self._database.keep_others_out(connection)
            known = await idempotency.known(connection, tenant, key)
            if known is not None:
                return await _get(connection, known, tenant), True
            job = await self._insert(connection, request, tenant, max_queued, demand, job_id)
            await idempotency.remember(connection, tenant, key, job.id)
            return job, False

    async def leave(self, job_id: str, fingerprint: str, window_s: float) -> datetime:
        """Leave a job to the next request of its fingerprint; the answer is until when."""
        now = self._clock()
        until = now + timedelta(seconds=window_s)
        async with self._database.write() as connection:
            await idempotency.leave(connection, job_id, fingerprint, now=now, until=until)
        return until

    async def take_over(self, fingerprint: str, *, tenant: str) -> Job | None:
        """The oldest job that was left to requests of this fingerprint; it is nobody else's then."""
        async with self._database.write() as connection:
            job_id = await idempotency.take(connection, fingerprint, self._clock())
            return None if job_id is None else await _get(connection, job_id, tenant)

    async def give_up(self, job_id: str, until: datetime) -> bool:
        """Leave a job no longer that was left until then; False when somebody has taken it over."""
        async with self._database.write() as connection:
            return await idempotency.give_up(connection, job_id, until)

    async def _insert(
        self,
        connection: AsyncConnection,
        request: dict[str, Any],
        tenant: str,
        max_queued: int,
        demand: Demand,
        job_id: str | None,
    ) -> Job:
        now = self._clock()
        await bounds.check(connection, tenant, max_queued, demand, now)
        values = {
            "id": job_id or self._ids.new(now),
            "tenant": tenant,
            "state": JobState.QUEUED,
            "request": request,
            "created_at": now,
            "work_s": demand.work_s,
            "key_id": demand.key_id,
        }
        return _job((await connection.execute(insert(jobs).values(values).returning(jobs))).one())

    async def get(self, job_id: str, *, tenant: str | None = None) -> Job:
        """The job as it is now. Raises UnknownJob, also for another tenant's (None: whosever it is)."""
        async with self._database.read() as connection:
            return await _get(connection, job_id, tenant)

    async def claim(self, job_id: str, *, owner: str, lease_s: float, max_attempts: int) -> Job | None:
        """Take a queued job, or one whose owner's lease has ended: one UPDATE, won by one claimant.

        None when there is nothing to take: another was faster, it has ended, is to be cancelled, or its owners
        died under it `max_attempts` times.
        """
        return await self._claim(jobs.c.id == job_id, owner, lease_s, max_attempts)

    async def claim_next(self, *, owner: str, lease_s: float, max_attempts: int) -> Job | None:
        """Take the oldest queued job; None when none waits (or, on Postgres, all are just being taken)."""
        oldest = (
            select(jobs.c.id)
            .where(jobs.c.state == JobState.QUEUED)
            .order_by(jobs.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)  # SQLite has no such clause and needs none
        )
        return await self._claim(jobs.c.id == oldest.scalar_subquery(), owner, lease_s, max_attempts)

    async def _claim(self, which: ColumnElement[bool], owner: str, lease_s: float, max_attempts: int) -> Job | None:
        now = self._clock()
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
        async with self._database.write() as connection:
            row = (await connection.execute(statement)).one_or_none()
        return None if row is None else _job(row)

    async def heartbeat(self, held: Mapping[str, int], *, lease_s: float) -> Held:
        """A sign of life for all jobs that an owner holds (id -> fence); their leases run anew from now.

        A lease that has ended is good again as long as nobody else has claimed the job.
        """
        now = self._clock()
        kept: dict[str, bool] = {}
        async with self._database.write() as connection:
            for still_held in _held_now(held):
                statement = (
                    update(jobs)
                    .where(still_held)
                    .values(heartbeat_at=now, lease_until=now + timedelta(seconds=lease_s))
                    .returning(jobs.c.id, jobs.c.cancel_requested)
                )
                kept |= {row.id: row.cancel_requested for row in await connection.execute(statement)}
        return _held(held, kept)

    async def progress(self, fences: Mapping[str, int], progress: Mapping[str, JobProgress]) -> Held:
        """Note how far the jobs are that an owner holds (id -> fence, id -> progress), all in one transaction.

        Leases stay as they are.
        """
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
                "to_step": progress[job_id].step,
                "to_steps": progress[job_id].steps,
                "to_images": progress[job_id].images_done,
                "to_device_s": progress[job_id].device_s,
            }
            for job_id, fence in fences.items()
        ]
        async with self._database.write() as connection:
            await connection.execute(statement, rows)
            for still_held in _held_now(fences):
                found = await connection.execute(select(jobs.c.id, jobs.c.cancel_requested).where(still_held))
                kept |= {row.id: row.cancel_requested for row in found}
        return _held(fences, kept)

    async def keep(self, job_id: str, fence: int, states: Mapping[ImageStage, bytes]) -> None:
        """Keep how far images of a job are, until the job ends. Raises StaleLease."""
        held = select(jobs.c.id).where(*_held_under(job_id, fence)).with_for_update()
        async with self._database.write() as connection:
            if (await connection.execute(held)).one_or_none() is None:
                raise StaleLease(f"job {job_id} is no longer held under fence {fence}")
            await state_rows.keep(connection, job_id, states)

    async def kept(self, job_id: str) -> Mapping[ImageStage, bytes]:
        """What its owners, this one and those before, have kept of a job that hasn't ended."""
        async with self._database.read() as connection:
            return await state_rows.load(connection, job_id)

    async def forget_kept(self) -> None:
        """Delete what is kept of jobs that have ended; whoever ends a job does so too."""
        async with self._database.write() as connection:
            await state_rows.forget_ended(connection)

    async def complete(self, job_id: str, fence: int, result: dict[str, Any], at: JobProgress | None = None) -> Job:
        """End a job with its result. at: how far it was in the end. Raises StaleLease."""
        return await self._end(job_id, fence, JobState.COMPLETE, at, result=result)

    async def block(self, job_id: str, fence: int, result: dict[str, Any], at: JobProgress | None = None) -> Job:
        """End a job all of whose images were withheld. Raises StaleLease."""
        return await self._end(job_id, fence, JobState.BLOCKED, at, result=result)

    async def fail(self, job_id: str, fence: int, *, code: str, message: str, at: JobProgress | None = None) -> Job:
        """End a job with an error. Raises StaleLease."""
        return await self._end(job_id, fence, JobState.FAILED, at, error_code=code, error_message=message)

    async def cancelled(self, job_id: str, fence: int, at: JobProgress | None = None) -> Job:
        """Its owner has ended a job that was to be cancelled. Raises StaleLease."""
        return await self._end(job_id, fence, JobState.CANCELLED, at)

    async def release(self, job_id: str, fence: int) -> Job:
        """Hand a running job back to its old place in the queue, as an attempt that doesn't count.

        One that is to be cancelled ends here. Raises StaleLease.
        """
        to_cancel = jobs.c.cancel_requested.is_(True)
        queued, cancelled = (
            move(JobState.RUNNING, JobState.QUEUED),
            move(JobState.RUNNING, JobState.CANCELLED),
        )
        return await self._write(
            job_id,
            fence,
            state=case((to_cancel, cancelled), else_=queued),
            finished_at=case((to_cancel, literal(self._clock(), UtcDateTime))),
            attempts=jobs.c.attempts - 1,
            step=0,
            images_done=0,
            device_s=0.0,
            **_NOBODYS,
        )

    async def fail_queued(self, job_id: str, *, code: str, message: str) -> Job:
        """End a job that nobody has started. Raises StaleLease when somebody has, or it has ended."""
        statement = (
            update(jobs)
            .where(jobs.c.id == job_id, jobs.c.state == JobState.QUEUED)
            .values(
                state=move(JobState.QUEUED, JobState.FAILED),
                error_code=code,
                error_message=message,
                finished_at=self._clock(),
                **_NOBODYS,
            )
            .returning(jobs)
        )
        async with self._database.write() as connection:
            row = (await connection.execute(statement)).one_or_none()
            await state_rows.forget(connection, [job_id] if row is not None else [])
        if row is None:
            raise StaleLease(f"job {job_id} is no longer queued")
        return _job(row)

    async def cancel(self, job_id: str, *, tenant: str | None = None) -> Job:
        """Cancel a job: a queued one ends at once, a running one's owner is told, an ended one is left.

        Raises UnknownJob, also for another tenant's.
        """
        async with self._database.write() as connection:
            await _get(connection, job_id, tenant)
            await connection.execute(
                update(jobs)
                .where(jobs.c.id == job_id, jobs.c.state == JobState.QUEUED)
                .values(
                    state=move(JobState.QUEUED, JobState.CANCELLED),
                    cancel_requested=True,
                    finished_at=self._clock(),
                    **_NOBODYS,
                )
            )
            await connection.execute(
                update(jobs).where(jobs.c.id == job_id, jobs.c.state == JobState.RUNNING).values(cancel_requested=True)
            )
            job = await _get(connection, job_id, tenant)
            await state_rows.forget(connection, [job_id] if job.state.terminal else [])
            return job

    async def settle_abandoned(self, max_attempts: int) -> tuple[Job, ...]:
        """End the running jobs whose lease has ended and which nobody may claim again; the answer names them.

        Those to be cancelled are cancelled; those started `max_attempts` times fail with attempts_exhausted.
        """
        now = self._clock()
        abandoned = (jobs.c.state == JobState.RUNNING) & (jobs.c.lease_until < now)
        gone = {"finished_at": now, "fence": jobs.c.fence + 1, **_NOBODYS}
        cancelled = (
            update(jobs)
            .where(abandoned, jobs.c.cancel_requested.is_(True))
            .values(state=move(JobState.RUNNING, JobState.CANCELLED), **gone)
            .returning(jobs)
        )
        exhausted = (
            update(jobs)
            .where(abandoned, jobs.c.attempts >= max_attempts)
            .values(
                state=move(JobState.RUNNING, JobState.FAILED),
                error_code="attempts_exhausted",
                error_message=f"given up after {max_attempts} attempts that ended with their process",
                **gone,
            )
            .returning(jobs)
        )
        async with self._database.write() as connection:
            ended = [_job(row) for row in (*await connection.execute(cancelled), *await connection.execute(exhausted))]
            await state_rows.forget(connection, [job.id for job in ended])
        return tuple(ended)

    async def expired(self, limit: int = 100) -> tuple[Job, ...]:
        """Running jobs whose lease has ended, the oldest first: to be claimed or settled."""
        return await self._select(jobs.c.state == JobState.RUNNING, jobs.c.lease_until < self._clock(), limit=limit)

    async def queued(self, limit: int = 1000) -> tuple[Job, ...]:
        """Jobs that are nobody's, the oldest first."""
        return await self._select(jobs.c.state == JobState.QUEUED, limit=limit)

    async def finished_before(self, moment: datetime, limit: int = 100) -> tuple[Job, ...]:
        """Jobs that ended before `moment`, the oldest first."""
        return await self._select(_in(ENDS), jobs.c.finished_at < moment, limit=limit)

    async def known(self, job_ids: Collection[str]) -> Mapping[str, Job]:
        """Those of these jobs that there are, by id."""
        found = await self._select(jobs.c.id.in_(sorted(job_ids)), limit=len(job_ids))
        return {job.id: job for job in found}

    async def _select(self, *conditions: ColumnElement[bool], limit: int) -> tuple[Job, ...]:
        async with self._database.read() as connection:
            rows = await connection.execute(select(jobs).where(*conditions).order_by(jobs.c.id).limit(limit))
            return tuple(_job(row) for row in rows)

    async def delete(self, job_id: str) -> bool:
        """Forget a job that has ended; False when there is none, or it hasn't."""
        async with self._database.write() as connection:
            gone = await connection.execute(delete(jobs).where(jobs.c.id == job_id, _in(ENDS)))
            if gone.rowcount != 1:
                return False
            await idempotency.forget(connection, job_id)
        return True

    async def page(self, *, tenant: str | None, limit: int, cursor: str | None = None) -> JobPage:
        """A tenant's jobs (None: everybody's), newest first. A cursor of no job's form gets an empty page."""
        statement = select(jobs).order_by(jobs.c.id.desc()).limit(limit + 1)
        if tenant is not None:
            statement = statement.where(jobs.c.tenant == tenant)
        if cursor is not None:
            if not is_job_id(cursor):
                return JobPage((), None)
            statement = statement.where(jobs.c.id < cursor)
        async with self._database.read() as connection:
            rows = [_job(row) for row in await connection.execute(statement)]
        found = tuple(rows[:limit])
        return JobPage(found, found[-1].id if found and len(rows) > limit else None)

    async def position(self, job_id: str) -> int:
        """Its place among the queued jobs, 1 being next; 0 when it doesn't wait. Raises UnknownJob."""
        async with self._database.read() as connection:
            if (await _get(connection, job_id, None)).state is not JobState.QUEUED:
                return 0
            ahead = await connection.scalar(
                select(func.count()).select_from(jobs).where(jobs.c.state == JobState.QUEUED, jobs.c.id <= job_id)
            )
            return ahead or 0

    async def depth(self) -> QueueDepth:
        """How many jobs wait and how many run; also the cheap question whether the database answers."""
        statement = select(jobs.c.state, func.count().label("jobs")).where(_in(UNFINISHED)).group_by(jobs.c.state)
        async with self._database.read() as connection:
            counts = {row.state: row.jobs for row in await connection.execute(statement)}
        return QueueDepth(counts.get(JobState.QUEUED, 0), counts.get(JobState.RUNNING, 0))

    async def _end(self, job_id: str, fence: int, state: JobState, at: JobProgress | None, **values: Any) -> Job:
        """End a job, and charge what it took to its key; attempts that died with their owners are on the house."""
        if at is not None:
            values |= {"step": at.step, "steps": at.steps, "images_done": at.images_done, "device_s": at.device_s}
        return await self._write(
            job_id,
            fence,
            charge=True,
            state=move(JobState.RUNNING, state),
            finished_at=self._clock(),
            **_NOBODYS,
            **values,
        )

    async def _write(self, job_id: str, fence: int, *, charge: bool = False, **values: Any) -> Job:
        statement = update(jobs).where(*_held_under(job_id, fence)).values(**values).returning(jobs)
        async with self._database.write() as connection:
            row = (await connection.execute(statement)).one_or_none()
            if row is None:
                raise StaleLease(f"job {job_id} is no longer held under fence {fence}")
            if charge and row.key_id is not None and row.device_s > 0:
                await quotas.charge(connection, row.key_id, row.device_s, self._clock())
            job = _job(row)
            await state_rows.forget(connection, [job_id] if job.state.terminal else [])
        return job


def _in(states: frozenset[JobState]) -> ColumnElement[bool]:
    return jobs.c.state.in_(sorted(states))


def _held_under(job_id: str, fence: int) -> tuple[ColumnElement[bool], ...]:
    """Conditions that hold for a job which is still its owner's."""
    return jobs.c.id == job_id, jobs.c.fence == fence, jobs.c.state == JobState.RUNNING


def _held_now(held: Mapping[str, int]) -> Iterator[ColumnElement[bool]]:
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


async def _get(connection: AsyncConnection, job_id: str, tenant: str | None) -> Job:
    row = None
    if is_job_id(job_id):
        row = (await connection.execute(select(jobs).where(jobs.c.id == job_id))).one_or_none()
    if row is None or (tenant is not None and row.tenant != tenant):
        raise UnknownJob("no such job")
    return _job(row)


def _job(row: Row[Any]) -> Job:
    return Job(**{**row._mapping, "state": JobState(row.state)})
