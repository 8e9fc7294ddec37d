"""The job store: every change of a job is one transaction, and every write of an owner is fenced.

An owner is whoever claimed a job: `claim` is one UPDATE that raises the job's fence and starts a lease. All
of the owner's writes carry that fence and raise StaleLease when the job has gone on without it. Which states
may follow which is in states.py. Knows nothing of HTTP, of stages or of images.

Every method raises StoreUnavailable when the database can't be reached.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, case, delete, insert, literal, select, update

from serve_app.errors import StaleLease
from serve_app.estimation.cost_model import LearnedCost
from serve_app.jobs.db import cost_rows, idempotency, job_rows, leases, limits, outbox, quotas, snapshot_rows
from serve_app.jobs.db.database import Database, keep_others_out
from serve_app.jobs.db.idempotency import RequestKey
from serve_app.jobs.db.job_rows import among, job_of
from serve_app.jobs.db.leases import NOBODYS
from serve_app.jobs.db.limits import NO_BOUNDS, Demand
from serve_app.jobs.db.outbox import DueWebhook, Webhook
from serve_app.jobs.db.schema import UtcDateTime, jobs
from serve_app.jobs.db.snapshot_rows import ImageStage
from serve_app.jobs.job import Held, Job, JobIds, JobPage, JobProgress, QueueDepth, utc_now
from serve_app.jobs.states import ENDS, JobState, move


class JobStore:
    """Jobs in a database by an SQLAlchemy URL; several stores, in several processes, may share one.

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
        webhook: Webhook | None = None,
    ) -> Job:
        """A new queued job, under `job_id` where it is given; `webhook` is called when it has ended.

        Counting and inserting are one transaction, so that the bounds hold exactly.
        Raises QueueFull when `max_queued` jobs are unfinished, and whatever else limits.py refuses.
        """

        def create(connection: Connection) -> Job:
            keep_others_out(connection)
            return self._insert(connection, request, tenant, max_queued, demand, job_id, webhook)

        return await self._database.write(create)

    async def create_once(
        self,
        request: dict[str, Any],
        *,
        key: RequestKey,
        tenant: str = "",
        max_queued: int,
        demand: Demand = NO_BOUNDS,
        job_id: str | None = None,
        webhook: Webhook | None = None,
    ) -> tuple[Job, bool]:
        """The job of a request that may come again, and whether it had come before; also when the queue is full.

        Raises IdempotencyMismatch, and as `create` does.
        """

        def create_once(connection: Connection) -> tuple[Job, bool]:
            keep_others_out(connection)
            known = idempotency.known(connection, tenant, key)
            if known is not None:
                return job_rows.get(connection, known, tenant), True
            job = self._insert(connection, request, tenant, max_queued, demand, job_id, webhook)
            idempotency.remember(connection, tenant, key, job.id)
            return job, False

        return await self._database.write(create_once)

    async def leave(self, job_id: str, fingerprint: str, window_s: float) -> datetime:
        """Leave a job to the next request of its fingerprint; the answer is until when."""
        now = self._clock()
        until = now + timedelta(seconds=window_s)
        await self._database.write(
            lambda connection: idempotency.leave(connection, job_id, fingerprint, now=now, until=until)
        )
        return until

    async def take_over(self, fingerprint: str, *, tenant: str) -> Job | None:
        """The oldest job that was left to requests of this fingerprint; it is nobody else's then."""

        def take_over(connection: Connection) -> Job | None:
            job_id = idempotency.take(connection, fingerprint, self._clock())
            return None if job_id is None else job_rows.get(connection, job_id, tenant)

        return await self._database.write(take_over)

    async def give_up(self, job_id: str, until: datetime) -> bool:
        """Leave a job no longer that was left until then; False when somebody has taken it over."""
        return await self._database.write(lambda connection: idempotency.give_up(connection, job_id, until))

    def _insert(
        self,
        connection: Connection,
        request: dict[str, Any],
        tenant: str,
        max_queued: int,
        demand: Demand,
        job_id: str | None,
        webhook: Webhook | None,
    ) -> Job:
        now = self._clock()
        limits.check(connection, tenant, max_queued, demand, now)
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
        return job

    async def get(self, job_id: str, *, tenant: str | None = None) -> Job:
        """The job as it is now. Raises UnknownJob, also for another tenant's (None: whosever it is)."""
        return await self._database.read(lambda connection: job_rows.get(connection, job_id, tenant))

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
        return await self._database.write(
            lambda connection: leases.claim(
                connection, which, owner=owner, lease_s=lease_s, max_attempts=max_attempts, now=self._clock()
            )
        )

    async def heartbeat(self, held: Mapping[str, int], *, lease_s: float) -> Held:
        """A sign of life for all jobs that an owner holds (id -> fence); their leases run anew from now.

        A lease that has ended is good again as long as nobody else has claimed the job.
        """
        return await self._database.write(
            lambda connection: leases.heartbeat(connection, held, lease_s=lease_s, now=self._clock())
        )

    async def progress(self, fences: Mapping[str, int], progress: Mapping[str, JobProgress]) -> Held:
        """Note how far the jobs are that an owner holds (id -> fence, id -> progress), all in one transaction.

        Leases stay as they are.
        """
        return await self._database.write(lambda connection: leases.progress(connection, fences, progress))

    async def keep(self, job_id: str, fence: int, states: Mapping[ImageStage, bytes]) -> None:
        """Keep how far images of a job are, until the job ends. Raises StaleLease."""

        def keep(connection: Connection) -> None:
            leases.check(connection, job_id, fence)
            snapshot_rows.keep(connection, job_id, states)

        await self._database.write(keep)

    async def kept(self, job_id: str) -> Mapping[ImageStage, bytes]:
        """What its owners, this one and those before, have kept of a job that hasn't ended."""
        return await self._database.read(lambda connection: snapshot_rows.load(connection, job_id))

    async def forget_kept(self) -> None:
        """Delete what is kept of jobs that have ended; whoever ends a job does so too."""
        await self._database.write(snapshot_rows.forget_ended)

    async def keep_costs(self, costs: Sequence[LearnedCost]) -> None:
        """Keep what kinds of work have cost, for every router that starts after this."""
        await self._database.write(lambda connection: cost_rows.keep(connection, costs, self._clock()))

    async def costs(self) -> Sequence[LearnedCost]:
        """What routers, this one and others, have kept of late."""
        return await self._database.read(lambda connection: cost_rows.load(connection, self._clock()))

    async def claim_webhooks(self, limit: int, lease_s: float) -> Sequence[DueWebhook]:
        """Webhooks of ended jobs that are due; nobody else gets them for as long as the lease."""
        return await self._database.write(lambda connection: outbox.claim(connection, limit, lease_s, self._clock()))

    async def put_off_webhook(self, due: DueWebhook, pause_s: float) -> None:
        """The attempt failed; the next is after the pause."""
        until = self._clock() + timedelta(seconds=pause_s)
        await self._database.write(lambda connection: outbox.put_off(connection, due, until))

    async def settle_webhook(self, due: DueWebhook) -> None:
        """It was taken, or is given up."""
        await self._database.write(lambda connection: outbox.settle(connection, due))

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
        return await self._change(
            job_id,
            fence,
            state=case((to_cancel, cancelled), else_=queued),
            finished_at=case((to_cancel, literal(self._clock(), UtcDateTime))),
            attempts=jobs.c.attempts - 1,
            step=0,
            images_done=0,
            device_s=0.0,
            **NOBODYS,
        )

    async def _end(self, job_id: str, fence: int, state: JobState, at: JobProgress | None, **values: Any) -> Job:
        """End a job, and charge what it took to its key; attempts that died with their owners are on the house."""
        if at is not None:
            values |= {"step": at.step, "steps": at.steps, "images_done": at.images_done, "device_s": at.device_s}
        return await self._change(
            job_id,
            fence,
            charge=True,
            state=move(JobState.RUNNING, state),
            finished_at=self._clock(),
            **NOBODYS,
            **values,
        )

    async def _change(self, job_id: str, fence: int, *, charge: bool = False, **values: Any) -> Job:
        def change(connection: Connection) -> Job:
            job = leases.change(connection, job_id, fence, **values)
            if charge and job.key_id is not None and job.device_s > 0:
                quotas.charge(connection, job.key_id, job.device_s, self._clock())
            snapshot_rows.forget(connection, [job_id] if job.state.terminal else [])
            return job

        return await self._database.write(change)

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
                **NOBODYS,
            )
            .returning(jobs)
        )

        def fail(connection: Connection) -> Job:
            row = connection.execute(statement).one_or_none()
            if row is None:
                raise StaleLease(f"job {job_id} is no longer queued")
            snapshot_rows.forget(connection, [job_id])
            return job_of(row)

        return await self._database.write(fail)

    async def cancel(self, job_id: str, *, tenant: str | None = None) -> Job:
        """Cancel a job: a queued one ends at once, a running one's owner is told, an ended one is left.

        Raises UnknownJob, also for another tenant's.
        """

        def cancel(connection: Connection) -> Job:
            job_rows.get(connection, job_id, tenant)
            connection.execute(
                update(jobs)
                .where(jobs.c.id == job_id, jobs.c.state == JobState.QUEUED)
                .values(
                    state=move(JobState.QUEUED, JobState.CANCELLED),
                    cancel_requested=True,
                    finished_at=self._clock(),
                    **NOBODYS,
                )
            )
            connection.execute(
                update(jobs).where(jobs.c.id == job_id, jobs.c.state == JobState.RUNNING).values(cancel_requested=True)
            )
            job = job_rows.get(connection, job_id, tenant)
            snapshot_rows.forget(connection, [job_id] if job.state.terminal else [])
            return job

        return await self._database.write(cancel)

    async def settle_abandoned(self, max_attempts: int) -> tuple[Job, ...]:
        """End the running jobs whose lease has ended and which nobody may claim again; the answer names them.

        Those to be cancelled are cancelled; those started `max_attempts` times fail with attempts_exhausted.
        """
        now = self._clock()
        abandoned = (jobs.c.state == JobState.RUNNING) & (jobs.c.lease_until < now)
        gone = {"finished_at": now, "fence": jobs.c.fence + 1, **NOBODYS}
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

        def settle(connection: Connection) -> tuple[Job, ...]:
            ended = tuple(job_of(row) for ending in (cancelled, exhausted) for row in connection.execute(ending))
            snapshot_rows.forget(connection, [job.id for job in ended])
            return ended

        return await self._database.write(settle)

    async def expired(self, limit: int = 100) -> tuple[Job, ...]:
        """Running jobs whose lease has ended, the oldest first: to be claimed or settled."""
        return await self._find(jobs.c.state == JobState.RUNNING, jobs.c.lease_until < self._clock(), limit=limit)

    async def queued(self, limit: int = 1000) -> tuple[Job, ...]:
        """Jobs that are nobody's, the oldest first."""
        return await self._find(jobs.c.state == JobState.QUEUED, limit=limit)

    async def finished_before(self, moment: datetime, limit: int = 100) -> tuple[Job, ...]:
        """Jobs that ended before `moment`, the oldest first."""
        return await self._find(among(ENDS), jobs.c.finished_at < moment, limit=limit)

    async def known(self, job_ids: Collection[str]) -> Mapping[str, Job]:
        """Those of these jobs that there are, by id."""
        found = await self._find(jobs.c.id.in_(sorted(job_ids)), limit=len(job_ids))
        return {job.id: job for job in found}

    async def _find(self, *conditions: ColumnElement[bool], limit: int) -> tuple[Job, ...]:
        return await self._database.read(lambda connection: job_rows.find(connection, conditions, limit))

    async def delete(self, job_id: str) -> bool:
        """Forget a job that has ended; False when there is none, or it hasn't."""

        def forget(connection: Connection) -> bool:
            gone = connection.execute(delete(jobs).where(jobs.c.id == job_id, among(ENDS)))
            if gone.rowcount != 1:
                return False
            idempotency.forget(connection, job_id)
            outbox.forget(connection, job_id)
            return True

        return await self._database.write(forget)

    async def page(self, *, tenant: str | None, limit: int, cursor: str | None = None) -> JobPage:
        """A tenant's jobs (None: everybody's), newest first. A cursor of no job's form gets an empty page."""
        return await self._database.read(lambda connection: job_rows.page(connection, tenant, limit, cursor))

    async def position(self, job_id: str) -> int:
        """Its place among the queued jobs, 1 being next; 0 when it doesn't wait. Raises UnknownJob."""
        return await self._database.read(lambda connection: job_rows.position(connection, job_id))

    async def depth(self) -> QueueDepth:
        """How many jobs wait and how many run; also the cheap question whether the database answers."""
        return await self._database.read(job_rows.depth)
