"""Batches and their lines: claims by leases as jobs have them, and every write of an owner under its claim's fence.

A line becomes a job in the transaction that also notes it here (`place` and `note`, which `JobStore.create` calls), as
long as its batch is in progress and still its owner's. So a line is one job however often routers die, and none begins
once its batch is cancelled or its time is over.
"""

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, case, delete, func, insert, or_, select, tuple_, update

from serve_app.batches.batch import (
    ENDS_AS,
    UNFINISHED_BATCHES,
    Batch,
    BatchLine,
    BatchPage,
    BatchState,
    LineCounts,
    LinePlace,
    StoredFile,
    move,
)
from serve_app.errors import QueueFull, StaleLease, TooManyBatches, UnknownBatch
from serve_app.jobs.db import idempotency
from serve_app.jobs.db.database import Transactions, keep_others_out, reads, writes
from serve_app.jobs.db.file_rows import add_file, file_of
from serve_app.jobs.db.leases import NOBODYS, forget_snapshots, job_of
from serve_app.jobs.db.queue_limits import Demand
from serve_app.jobs.db.schema import batch_lines, batches, files, jobs
from serve_app.jobs.job import is_job_id
from serve_app.jobs.states import UNFINISHED, JobState
from serve_app.jobs.states import move as job_move

_FULL_RETRY_S = 1


class BatchStore(Transactions):
    """Each method raises StoreUnavailable."""

    @writes
    def create(
        self,
        connection: Connection,
        batch_id: str,
        *,
        tenant: str,
        key_id: str | None,
        endpoint: str,
        input_file: str,
        own_input: StoredFile | None = None,
        options: dict[str, Any],
        window_s: float,
        max_unfinished: int,
        key: idempotency.RequestKey | None = None,
    ) -> tuple[Batch, bool]:
        """Create the batch of a request, or return the one that it became before.

        Args:
            batch_id: from `JobStore.new_id`.
            input_file: id of a file of the tenant's.
            own_input: that file, where it is added with the batch and deleted with it.
            window_s: seconds after which what isn't drawn is given up.
            max_unfinished: most unfinished batches of the tenant.
            key: of a request that may come again; None for a new one.

        Returns:
            The batch, and whether the request had come before: then nothing is added.

        Raises:
            IdempotencyMismatch: the key was used for another request.
            UnknownFile: the tenant has no such file.
            TooManyBatches: `max_unfinished` batches of the tenant are unfinished.
        """
        keep_others_out(connection)
        known = None if key is None else idempotency.known(connection, tenant, key)
        if known is not None:
            return _get(connection, known, tenant, ""), True
        if own_input is not None:
            add_file(connection, own_input)
        file_of(connection, input_file, tenant)
        mine = select(func.count()).where(batches.c.tenant == tenant, _among(UNFINISHED_BATCHES))
        unfinished = connection.scalar(mine) or 0
        if unfinished >= max_unfinished:
            raise TooManyBatches(f"{unfinished} of your batches are unfinished, {max_unfinished} are allowed")
        now = self._clock()
        values = {
            "id": batch_id,
            "tenant": tenant,
            "key_id": key_id,
            "endpoint": endpoint,
            "input_file": input_file,
            "state": BatchState.VALIDATING,
            "options": options,
            "created_at": now,
            "expires_at": now + timedelta(seconds=window_s),
        }
        batch = _of(connection.execute(insert(batches).values(values).returning(batches)).one())
        if key is not None:
            idempotency.remember(connection, tenant, key, batch.id)
        return batch, False

    @reads
    def get(self, connection: Connection, batch_id: str, *, tenant: str | None = None, dialect: str = "") -> Batch:
        """A batch. Raises UnknownBatch, also for another tenant's (None: whosever it is) or dialect's."""
        return _get(connection, batch_id, tenant, dialect)

    @reads
    def page(
        self, connection: Connection, *, tenant: str | None, dialect: str, limit: int, after: str | None = None
    ) -> BatchPage:
        """A tenant's batches (None: all tenants') whose endpoint begins so, newest first, behind the id `after`."""
        statement = (
            select(batches)
            .where(batches.c.endpoint.startswith(dialect, autoescape=True))
            .order_by(batches.c.id.desc())
            .limit(limit + 1)
        )
        if tenant is not None:
            statement = statement.where(batches.c.tenant == tenant)
        if after is not None:
            statement = statement.where(batches.c.id < after)
        rows = [_of(row) for row in connection.execute(statement)]
        return BatchPage(tuple(rows[:limit]), len(rows) > limit)

    @reads
    def counts(self, connection: Connection, several: Collection[Batch]) -> Mapping[str, LineCounts]:
        """What became of the lines of batches, by the batch's id."""
        ended = {
            batch.id: LineCounts(batch.completed, batch.failed, 0, batch.device_s)
            for batch in several
            if batch.state.terminal
        }
        return {batch.id: ended.get(batch.id) or _counts(connection, batch.id, batch.state) for batch in several}

    @reads
    def lines(self, connection: Connection, batch_id: str) -> Mapping[int, BatchLine]:
        """The lines that have become jobs or were refused, by their index."""
        rows = connection.execute(select(batch_lines).where(batch_lines.c.batch_id == batch_id))
        return {row.line: _line_of(row) for row in rows}

    @writes
    def cancel(
        self, connection: Connection, batch_id: str, *, tenant: str | None = None, dialect: str = ""
    ) -> tuple[Batch, list[str]]:
        """Cancel a batch: no line begins any more, its queued jobs end now, its running ones are to end.

        Returns:
            The batch, which stays as it is if its lines have ended, and the ids of its running jobs.

        Raises:
            UnknownBatch: as `get`.
        """
        keep_others_out(connection)  # a line may be about to become a job
        batch = _get(connection, batch_id, tenant, dialect)
        if batch.state not in (BatchState.VALIDATING, BatchState.IN_PROGRESS):
            return batch, []
        return self._close(connection, batch, BatchState.CANCELLING)

    @writes
    def close(self, connection: Connection, batch_id: str, fence: int, state: BatchState) -> tuple[Batch, list[str]]:
        """Let no line begin any more, as all have ended (FINALIZING) or the time is over (EXPIRING).

        Returns:
            As `cancel`; a batch that was cancelled meanwhile stays so.

        Raises:
            StaleLease: the batch is no longer held under this fence.
        """
        keep_others_out(connection)
        batch = _held(connection, batch_id, fence)
        return self._close(connection, batch, state) if batch.state is BatchState.IN_PROGRESS else (batch, [])

    def _close(self, connection: Connection, batch: Batch, state: BatchState) -> tuple[Batch, list[str]]:
        now = self._clock()
        values = {"state": move(batch.state, state), "closed_at": now}
        row = connection.execute(update(batches).where(batches.c.id == batch.id).values(values).returning(batches))
        return _of(row.one()), self._cancel_jobs(connection, batch.id)

    def _cancel_jobs(self, connection: Connection, batch_id: str) -> list[str]:
        """Cancel the unfinished jobs of a batch; returns the ids of those that run."""
        of_batch = jobs.c.id.in_(select(batch_lines.c.job_id).where(batch_lines.c.batch_id == batch_id))
        cancel = update(jobs).where(of_batch).values(cancel_requested=True)
        ended = {"state": job_move(JobState.QUEUED, JobState.CANCELLED), "finished_at": self._clock(), **NOBODYS}
        for row in connection.execute(
            cancel.where(jobs.c.state == JobState.QUEUED).values(ended).returning(jobs)
        ).all():
            forget_snapshots(connection, job_of(row))
        running = cancel.where(jobs.c.state == JobState.RUNNING).returning(jobs.c.id)
        return list(connection.scalars(running))

    @reads
    def claimable(self, connection: Connection) -> bool:
        """Whether there is a batch for `claim`."""
        return connection.execute(select(batches.c.id).where(*self._takeable()).limit(1)).one_or_none() is not None

    @writes
    def claim(self, connection: Connection, *, owner: str, lease_s: float, limit: int) -> tuple[Batch, ...]:
        """Take unfinished batches that nobody holds, the oldest first."""
        takeable = (
            select(batches.c.id)
            .where(*self._takeable())
            .order_by(batches.c.id)
            .limit(limit)
            .with_for_update(skip_locked=True)  # SQLite has no such clause and needs none
        )
        claimed = (
            update(batches)
            .where(batches.c.id.in_(takeable))
            .values(owner=owner, fence=batches.c.fence + 1, lease_until=self._clock() + timedelta(seconds=lease_s))
            .returning(batches)
        )
        return tuple(_of(row) for row in connection.execute(claimed))

    def _takeable(self) -> tuple[ColumnElement[bool], ...]:
        free = or_(batches.c.lease_until.is_(None), batches.c.lease_until < self._clock())
        return _among(UNFINISHED_BATCHES), free

    @writes
    def renew(self, connection: Connection, held: Mapping[str, int], *, lease_s: float) -> Mapping[str, BatchState]:
        """Renew the leases of an owner's batches (id -> fence); returns the states of those that are still its own."""
        until = self._clock() + timedelta(seconds=lease_s)
        renewed = (
            update(batches)
            .where(tuple_(batches.c.id, batches.c.fence).in_(list(held.items())), _among(UNFINISHED_BATCHES))
            .values(lease_until=until)
            .returning(batches.c.id, batches.c.state)
        )
        return {row.id: BatchState(row.state) for row in connection.execute(renewed)}

    @writes
    def release(self, connection: Connection, held: Mapping[str, int]) -> None:
        """Let others claim an owner's batches (id -> fence)."""
        mine = tuple_(batches.c.id, batches.c.fence).in_(list(held.items()))
        connection.execute(update(batches).where(mine).values(**NOBODYS))

    @writes
    def begin(self, connection: Connection, batch_id: str, fence: int, total: int) -> Batch:
        """Note that a batch's input is valid, and its number of lines. Raises StaleLease."""
        batch = _held(connection, batch_id, fence)
        if batch.state is not BatchState.VALIDATING:  # it was cancelled meanwhile
            return batch
        values = {"state": move(batch.state, BatchState.IN_PROGRESS), "total": total, "begun_at": self._clock()}
        return _change(connection, batch_id, fence, values)

    @writes
    def fail(self, connection: Connection, batch_id: str, fence: int, problems: list[dict[str, Any]]) -> list[str]:
        """End a batch that can't be answered; returns the ids of its jobs that run. Raises StaleLease."""
        keep_others_out(connection)
        batch = _held(connection, batch_id, fence)
        values = {"state": move(batch.state, BatchState.FAILED), "problems": problems}
        self._end(connection, batch, values)
        return self._cancel_jobs(connection, batch_id)

    @writes
    def end(
        self,
        connection: Connection,
        batch_id: str,
        fence: int,
        *,
        output: StoredFile | None,
        errors: StoredFile | None,
    ) -> Batch:
        """End a batch whose lines have ended, with the files of its answers. Raises StaleLease."""
        batch = _held(connection, batch_id, fence)
        for file in (output, errors):
            if file is not None:
                add_file(connection, file)
        values = {
            "state": move(batch.state, ENDS_AS[batch.state]),
            "output_file": None if output is None else output.id,
            "error_file": None if errors is None else errors.id,
        }
        return self._end(connection, batch, values)

    def _end(self, connection: Connection, batch: Batch, values: Mapping[str, Any]) -> Batch:
        counts = _counts(connection, batch.id, batch.state)
        sums = {"completed": counts.completed, "failed": counts.failed, "device_s": counts.device_s}
        return _change(connection, batch.id, batch.fence, {**values, **sums, "ended_at": self._clock(), **NOBODYS})

    @writes
    def refuse(self, connection: Connection, place: LinePlace, line: BatchLine) -> None:
        """Note that a line becomes no job. Raises StaleLease."""
        _held(connection, place.batch_id, place.fence)
        known = select(batch_lines.c.line).where(
            batch_lines.c.batch_id == place.batch_id, batch_lines.c.line == place.line
        )
        if connection.execute(known).one_or_none() is None:
            note(connection, place, line)

    @reads
    def ended_before(self, connection: Connection, age_s: float, limit: int = 100) -> tuple[Batch, ...]:
        """Batches that ended so many seconds ago."""
        old = batches.c.ended_at < self._clock() - timedelta(seconds=age_s)
        return tuple(_of(row) for row in connection.execute(select(batches).where(old).limit(limit)))

    @writes
    def delete(self, connection: Connection, batch: Batch) -> bool:
        """Delete a batch that has ended, and its lines: its jobs are no batch's then.

        Returns:
            Whether its input is deleted too, which was nobody else's.
        """
        connection.execute(delete(batches).where(batches.c.id == batch.id))
        connection.execute(delete(batch_lines).where(batch_lines.c.batch_id == batch.id))
        idempotency.forget(connection, batch.id)
        own = delete(files).where(files.c.id == batch.input_file, files.c.purpose == "matrix")
        return connection.execute(own).rowcount == 1


def check_place(connection: Connection, place: LinePlace, demand: Demand) -> None:
    """Check that a line may become a job now, in a transaction that keeps others out.

    Raises:
        StaleLease: its batch isn't in progress any more, or has another owner.
        QueueFull: as many lines are unfinished jobs as may be.
    """
    batch = _held(connection, place.batch_id, place.fence)
    if batch.state is not BatchState.IN_PROGRESS:
        raise StaleLease(f"batch {place.batch_id} is {batch.state}")
    sharing = connection.scalar(select(func.count()).where(batches.c.state == BatchState.IN_PROGRESS)) or 1
    mine = batch_lines.c.batch_id == place.batch_id
    unfinished = connection.execute(
        select(
            func.count().label("all"),
            func.coalesce(func.sum(case((mine, 1), else_=0)), 0).label("mine"),
            func.coalesce(func.sum(case((mine, jobs.c.work_s), else_=0.0)), 0.0).label("mine_s"),
        )
        .select_from(jobs)
        .join(batch_lines, batch_lines.c.job_id == jobs.c.id)
        .where(jobs.c.state.in_(sorted(UNFINISHED)))
    ).one()
    if not unfinished.mine:  # each batch goes on
        return
    too_much = place.most_s is not None and unfinished.mine_s + (demand.work_s or 0.0) > place.most_s / sharing
    if unfinished.mine >= max(1, place.most // sharing) or unfinished.all >= place.most or too_much:
        raise QueueFull("as many lines of batches are unfinished as may be", retry_after_s=_FULL_RETRY_S)


def note(connection: Connection, place: LinePlace, line: BatchLine) -> None:
    """Note what became of a line."""
    values = {
        "batch_id": place.batch_id,
        "line": place.line,
        "job_id": line.job_id,
        "error_code": line.error_code,
        "error_message": line.error_message,
        "error_field": line.error_field,
    }
    connection.execute(insert(batch_lines).values(values))


def of_no_batch() -> ColumnElement[bool]:
    """A condition for jobs that are no line of a batch which is still there."""
    return ~select(batch_lines.c.line).where(batch_lines.c.job_id == jobs.c.id).exists()


def _counts(connection: Connection, batch_id: str, state: BatchState) -> LineCounts:
    rows = connection.execute(
        select(
            jobs.c.state,
            func.count().label("lines"),
            func.coalesce(func.sum(jobs.c.device_s), 0.0).label("device_s"),
        )
        .select_from(batch_lines)
        .outerjoin(jobs, jobs.c.id == batch_lines.c.job_id)
        .where(batch_lines.c.batch_id == batch_id)
        .group_by(jobs.c.state)
    ).all()
    of = {row.state: row.lines for row in rows}  # None: refused, or its job was deleted
    failed = [None, JobState.FAILED, JobState.BLOCKED]
    if state not in (BatchState.CANCELLING, BatchState.EXPIRING):
        failed.append(JobState.CANCELLED)
    return LineCounts(
        completed=of.get(JobState.COMPLETE, 0),
        failed=sum(of.get(state, 0) for state in failed),
        unfinished=sum(of.get(state, 0) for state in UNFINISHED),
        device_s=sum(row.device_s for row in rows),
    )


def _get(connection: Connection, batch_id: str, tenant: str | None, dialect: str) -> Batch:
    """A batch whose endpoint begins with `dialect`. Raises UnknownBatch."""
    row = None
    if is_job_id(batch_id):
        row = connection.execute(select(batches).where(batches.c.id == batch_id)).one_or_none()
    if row is None or (tenant is not None and row.tenant != tenant) or not row.endpoint.startswith(dialect):
        raise UnknownBatch("no such batch")
    return _of(row)


def _held(connection: Connection, batch_id: str, fence: int) -> Batch:
    """An owner's unfinished batch, which nobody else changes until this transaction ends. Raises StaleLease."""
    mine = select(batches).where(batches.c.id == batch_id, batches.c.fence == fence, _among(UNFINISHED_BATCHES))
    row = connection.execute(mine.with_for_update()).one_or_none()
    if row is None:
        raise StaleLease(f"batch {batch_id} is no longer held under fence {fence}")
    return _of(row)


def _change(connection: Connection, batch_id: str, fence: int, values: Mapping[str, Any]) -> Batch:
    statement = update(batches).where(batches.c.id == batch_id, batches.c.fence == fence).values(**values)
    return _of(connection.execute(statement.returning(batches)).one())


def _among(states: Collection[BatchState]) -> ColumnElement[bool]:
    return batches.c.state.in_(sorted(states))


def _of(row: Row[Any]) -> Batch:
    return Batch(**{**row._mapping, "state": BatchState(row.state)})


def _line_of(row: Row[Any]) -> BatchLine:
    return BatchLine(row.job_id, row.error_code, row.error_message, row.error_field)
