"""Drives the batches that this router holds the leases of: validates, draws line by line, writes the answers.

A batch without an owner is claimed by whichever router looks first; one whose router died waits for the lease to end,
as a job does. Each line is a request with the key "batch id, line" and priority `batch`, so whoever drives the batch
next gets the job that a line has become already. A line that finds the queue full, or its key's quota spent, waits.
"""

import asyncio
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from deployments.engine.errors import DarkroomError
from serve_app.api.errors import WORTH_RETRYING, fields_named
from serve_app.api.http_status import status_of
from serve_app.api.service import RequestOrigin, Service
from serve_app.auth.caller import Caller
from serve_app.auth.key_file import Scope
from serve_app.batches.batch import Batch, BatchLine, BatchState, LinePlace
from serve_app.batches.dialect import BatchDialect, BatchLines
from serve_app.errors import (
    BatchRefused,
    Forbidden,
    QueueFull,
    StaleLease,
    StoreUnavailable,
    TooManyRequests,
    UnknownJob,
)
from serve_app.jobs.job import Job, utc_now
from serve_app.observability.logs import bound, get_logger
from serve_app.schemas.generation_request import GenerationRequest

log = get_logger(__name__)

# batches of one router at once
_AT_ONCE = 100

# between two tries of a line that wasn't accepted, in seconds
_RETRY_S, _LONGEST_RETRY_S = 1.0, 10.0

# jobs looked up at once
_CHUNK = 200


@dataclass(slots=True, eq=False)
class _Held:
    """A batch of this router; `closed` is set once no line of it may begin."""

    batch: Batch
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class BatchDriver:
    """The batches of one process. Belongs to one event loop.

    Args:
        dialects: by the beginning of a batch's endpoint.
        owner: this process.
    """

    def __init__(self, service: Service, dialects: Mapping[str, BatchDialect], owner: str) -> None:
        self._service = service
        self._store = service.store.batches
        self._settings = service.settings.batches
        self._dialects = dialects
        self._owner = owner
        self._held: dict[str, _Held] = {}
        self._beat_at = 0.0
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin."""
        self._loop = asyncio.create_task(self._look())

    async def stop(self) -> None:
        """End, and let others claim the batches; their jobs go on."""
        held = {batch_id: one.batch.fence for batch_id, one in self._held.items()}
        tasks = [task for task in (self._loop, *(one.task for one in self._held.values())) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if held:
            try:
                await self._store.release(held)
            except StoreUnavailable as error:
                log.warning("batches wait for their leases to end", cause=repr(error.__cause__))

    def check(self) -> None:
        """Raises what ended the loop, if it has ended."""
        if self._loop is not None and self._loop.done() and not self._loop.cancelled():
            self._loop.result()

    async def _look(self) -> None:
        while True:
            try:
                await self.look()
            except StoreUnavailable as error:
                log.warning("no batch was looked for: the job database didn't answer", cause=repr(error.__cause__))
            await asyncio.sleep(self._settings.poll_s)

    async def look(self) -> None:
        """Run one round: renew the leases when it is time, and take batches that nobody holds."""
        jobs = self._service.settings.jobs
        if self._held and time.monotonic() >= self._beat_at:
            held = {batch_id: one.batch.fence for batch_id, one in self._held.items()}
            states = await self._store.renew(held, lease_s=jobs.lease_s)
            self._beat_at = time.monotonic() + jobs.heartbeat_s
            for batch_id in held.keys() & self._held.keys():
                self._learn(self._held[batch_id], states.get(batch_id))
        room = _AT_ONCE - len(self._held)
        if room and await self._store.claimable():
            for batch in await self._store.claim(owner=self._owner, lease_s=jobs.lease_s, limit=room):
                self._begin(batch)

    def _learn(self, held: _Held, state: BatchState | None) -> None:
        """Take in a batch's state; None if it isn't ours any more."""
        if state is None and held.task is not None:
            held.task.cancel()
        if state not in (BatchState.VALIDATING, BatchState.IN_PROGRESS):
            held.closed.set()

    def _begin(self, batch: Batch) -> None:
        before = self._held.get(batch.id)
        if before is not None:  # our own lease had ended unnoticed
            self._learn(before, None)
        held = _Held(batch)
        self._held[batch.id] = held
        held.task = asyncio.create_task(self._run(held))

    async def _run(self, held: _Held) -> None:
        """Drive a batch to its end; nothing is raised."""
        batch = held.batch
        with bound(batch_id=batch.id):
            try:
                ended = await self._drive(held)
                log.info("batch ended", state=ended.state.value, completed=ended.completed, failed=ended.failed)
            except StaleLease:
                log.warning("the batch went on to another owner")
            except StoreUnavailable as error:
                log.warning("a store didn't answer; the batch waits for its lease to end", cause=repr(error.__cause__))
            except BatchRefused as error:
                await self._fail(batch, [dict(problem) for problem in error.problems])
            except DarkroomError as error:
                await self._fail(batch, [{"code": error.code, "message": str(error)}])
            except Exception:
                log.exception("a batch failed for a reason that is a bug")
                message = "the batch failed unexpectedly; the service's log says why"
                await self._fail(batch, [{"code": DarkroomError.code, "message": message}])
            finally:
                if self._held.get(batch.id) is held:
                    del self._held[batch.id]

    async def _fail(self, batch: Batch, problems: list[dict[str, object]]) -> None:
        try:
            self._cancel(await self._store.fail(batch.id, batch.fence, problems))
        except (StaleLease, StoreUnavailable) as error:
            log.warning("a batch couldn't be ended", code=error.code)
        else:
            log.warning("batch failed", code=problems[0]["code"])

    async def _drive(self, held: _Held) -> Batch:
        """The batch at its end. Raises StaleLease, StoreUnavailable, BatchRefused."""
        batch = held.batch
        lines = await self._dialect(batch).read(batch)
        if batch.total == 0:
            batch = await self._store.begin(batch.id, batch.fence, lines.total)
        if batch.state is BatchState.IN_PROGRESS:
            state = await self._draw(held, lines)
            batch, running = await self._store.close(batch.id, batch.fence, state)
            self._cancel(running)
        held.closed.set()
        ends = await self._ends(batch.id)
        files = await lines.answer(batch, ends)
        return await self._store.end(batch.id, batch.fence, output=files.output, errors=files.errors)

    def _dialect(self, batch: Batch) -> BatchDialect:
        return next(of for prefix, of in self._dialects.items() if batch.endpoint.startswith(prefix))

    def _cancel(self, running: Iterable[str]) -> None:
        for job_id in running:
            self._service.runner.cancel(job_id)

    async def _draw(self, held: _Held, lines: BatchLines) -> BatchState:
        """Let every line become a job and end; the state that follows. Raises StaleLease."""
        batch = held.batch
        left_s = (batch.expires_at - utc_now()).total_seconds()
        known = await self._store.lines(batch.id)
        waiting: set[asyncio.Task[None]] = set()
        try:
            async with asyncio.timeout(left_s) as window:
                waiting |= {asyncio.create_task(self._end(job)) for job in await self._unfinished(known)}
                for line in range(lines.total):
                    if line in known:
                        continue
                    waiting = {task for task in waiting if not task.done()}
                    if len(waiting) >= self._settings.in_flight:
                        _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    job = await self._accepted(held, lines, line, waiting)
                    if job is not None:
                        waiting.add(asyncio.create_task(self._end(job)))
                    elif held.closed.is_set():
                        break
                if waiting:
                    await asyncio.wait(waiting)
        except TimeoutError:
            if not window.expired():
                raise
            return BatchState.EXPIRING
        finally:
            for task in waiting:
                task.cancel()
        return BatchState.FINALIZING

    async def _accepted(
        self, held: _Held, lines: BatchLines, line: int, waiting: set[asyncio.Task[None]]
    ) -> Job | None:
        """The job of a line, as soon as there is room; None if it was refused, or no line may begin any more."""
        batch = held.batch
        place = LinePlace(batch.id, batch.fence, line, *self._most())
        counted = False
        while not held.closed.is_set():
            try:
                caller = self._caller(batch, line)
                if caller.key is not None and not counted:
                    await self._service.rates.count(caller.key.id, generation=True)
                    counted = True
                asked = await lines.request(line)
                request = asked.request.model_copy(
                    update={"priority": "batch", "timeout_s": asked.request.timeout_s or self._longest_s}
                )
                origin = RequestOrigin(caller, f"{batch.id}-{line}", line=place)
                with fields_named(asked.names):
                    job = await self._started(request, origin)
            except StaleLease:
                now = await self._store.get(batch.id)
                if now.fence != batch.fence or now.state.terminal:
                    raise
                held.closed.set()
            except DarkroomError as error:
                if status_of(error) not in WORTH_RETRYING:
                    await self._refuse(place, batch, error)
                    return None
                await self._pause(held, error, waiting)
            else:
                return job
        return None

    async def _started(self, request: GenerationRequest, origin: RequestOrigin) -> Job:
        """As Service.accept; if the caller is cancelled, a job that is stored by then is started all the same."""
        accepting = asyncio.create_task(self._service.accept(request, origin))
        try:
            job, _ = await asyncio.shield(accepting)
        except asyncio.CancelledError:
            await asyncio.gather(accepting, return_exceptions=True)
            raise
        return job

    @property
    def _longest_s(self) -> float:
        return self._service.settings.limits.max_timeout_s

    def _most(self) -> tuple[int, float | None]:
        """Most lines that are unfinished jobs, and most seconds of their work.

        Half of the queue, so that there is room for other requests.
        """
        jobs = self._service.settings.jobs
        bounds_s = [bound for bound in (jobs.max_queued_s, jobs.max_queued_s_per_tenant) if bound is not None]
        return min(self._settings.in_flight, max(1, jobs.max_queued // 2)), min(bounds_s) / 2 if bounds_s else None

    def _caller(self, batch: Batch, line: int) -> Caller:
        """Who asks for a line: the key that created the batch. Raises Unauthenticated, Forbidden."""
        caller = self._service.caller_of(batch.tenant, batch.key_id, f"{batch.id}-{line}")
        if not caller.may(Scope.GENERATE):
            raise Forbidden(f"this key may not do that: it lacks the scope {Scope.GENERATE}")
        return caller

    async def _refuse(self, place: LinePlace, batch: Batch, error: DarkroomError) -> None:
        log.info("a line was refused", line=place.line, code=error.code)
        self._service.store.usage.refused(batch.tenant)
        # (Postgres' texts hold no NUL; a field's name may be the client's)
        field = None if error.field is None else error.field[:255].replace("\0", "")
        await self._store.refuse(place, BatchLine(None, error.code, str(error).replace("\0", ""), field))

    async def _pause(self, held: _Held, error: DarkroomError, waiting: set[asyncio.Task[None]]) -> None:
        """Wait until a line that wasn't accepted may be: until a job has ended, or for a while."""
        pause_s = _RETRY_S
        if isinstance(error, (QueueFull, TooManyRequests)) and error.retry_after_s is not None:
            pause_s = min(_LONGEST_RETRY_S, error.retry_after_s)
        closed = asyncio.create_task(held.closed.wait())
        try:
            running = {task for task in waiting if not task.done()}
            await asyncio.wait({closed, *running}, timeout=pause_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            closed.cancel()

    async def _end(self, job: Job) -> None:
        """Returns when the job has ended, or is deleted."""
        try:
            await self._service.wait(job, math.inf)
        except UnknownJob:
            return

    async def _ends(self, batch_id: str) -> Mapping[int, BatchLine]:
        """The lines of a batch, once their jobs have ended."""
        lines = await self._store.lines(batch_id)
        for job in await self._unfinished(lines):
            await self._end(job)
        return lines

    async def _unfinished(self, lines: Mapping[int, BatchLine]) -> list[Job]:
        """The jobs of lines that haven't ended."""
        job_ids = [line.job_id for line in lines.values() if line.job_id is not None]
        found: list[Job] = []
        for start in range(0, len(job_ids), _CHUNK):
            known = await self._service.store.known(job_ids[start : start + _CHUNK])
            found += [job for job in known.values() if not job.state.terminal]
        return found
