"""Runs jobs: from a queued row of the store to its end, each in a task of its own.

The task has a fresh context: Serve ties handle calls to the request in whose context they are made, and a job must
outlive the client's connection. Every write to the store carries the fence of this attempt's claim; an attempt whose
job has another owner by now is dropped. The executors draw the images.
"""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from deployments.demand import Demand
from deployments.engine.errors import Cancelled, CheckpointError, DarkroomError, DeadlineExceeded
from deployments.engine.types import Pixels
from deployments.priority_semaphore import PrioritySemaphore
from serve_app.config.models import AddedModel
from serve_app.config.settings import Settings
from serve_app.errors import StageUnavailable, StaleLease, StoreUnavailable, UnknownJob
from serve_app.estimation.cost_model import CostModel
from serve_app.estimation.fleet import Fleet
from serve_app.estimation.queue_forecast import Forecast, QueueForecast
from serve_app.image_store.store import ImageStore
from serve_app.images.inpainting import Canvas, Frame, frame_of
from serve_app.images.moderation import preview_of
from serve_app.images.steering import SteeringPictures
from serve_app.jobs.attempt import Attempt, Stop
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.events import EventHub
from serve_app.jobs.generation_executor import GenerationExecutor, LaneProgress
from serve_app.jobs.image_finisher import DrawnImage, ImageFinisher, Signing
from serve_app.jobs.job import Job, utc_now
from serve_app.jobs.progress_writer import ProgressWriter
from serve_app.jobs.states import JobState
from serve_app.jobs.upscale_executor import PICTURES_AT_ONCE, UpscaleExecutor
from serve_app.observability.logs import bound, get_logger, sensitive
from serve_app.observability.metrics import FrontMetrics
from serve_app.observability.traces import JobTraces
from serve_app.planning.plan import OperationPlan, Plan, read_plan
from serve_app.planning.upscale import UpscalePlan
from serve_app.provenance.signer import ImageSigner
from serve_app.provenance.watermark import ImageWatermark
from serve_app.schemas.resolved import Operation, ResolvedGeneration
from serve_app.stages.client import Encoding, StageCalls

log = get_logger(__name__)

# the pause between two tries of a write that the database didn't take doubles from the first to the second
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


class JobRunner:
    """The jobs of this process, on one event loop."""

    def __init__(
        self,
        settings: Settings,
        *,
        present: Callable[[], Settings],
        store: JobStore,
        images: ImageStore,
        calls: StageCalls,
        hub: EventHub,
        metrics: FrontMetrics,
        costs: CostModel,
        traces: JobTraces,
        signer: ImageSigner | None,
        watermark: ImageWatermark | None,
        owner: str,
    ) -> None:
        """`settings` are the configuration file's; `present` returns those with the models as they are now."""
        self._settings = settings
        self._present = present
        self._store = store
        self._images = images
        self._calls = calls
        self._hub = hub
        self._metrics = metrics
        self._owner = owner
        self._attempts: dict[str, Attempt] = {}
        self._costs = costs
        self._traces = traces
        self._signer = signer
        self._watermark = watermark
        fleets = {
            name: Fleet.of(getattr(settings.stages, name), partial(calls.replicas, name)) for name in calls.denoisers
        }
        self._forecast = QueueForecast(self._attempts, costs, fleets=fleets)
        self._upscales = PrioritySemaphore(PICTURES_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._progress_writer = ProgressWriter(settings.jobs, store, self._attempts)
        self._draining = False

    def start(self, job: Job, plan: OperationPlan | None = None, request_id: str = "") -> None:
        """Run a stored job that is queued, or whose owner is gone.

        Does nothing if the job runs here already, or if this process is about to end: another one will take it up.

        Args:
            job: as stored.
            plan: of the job; None to derive it from the stored request.
            request_id: of the HTTP request, for the log.

        Raises:
            ValueError: the stored request no longer fits these settings (pydantic's ValidationError).
            KeyError: likewise, there is no such model any more.
        """
        if self._draining or job.id in self._attempts:
            return
        plan = plan or read_plan(job.request, self._present())
        attempt = Attempt(job, plan, alone=not self._attempts, accepted=time.monotonic())
        self._attempts[job.id] = attempt
        self._forecast.changed()
        if job.fence == 0:
            attempt.eta_s = self._forecast.eta_s(job.id)
        self._hub.open(job.id)
        task = asyncio.create_task(self._run(attempt, request_id), context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self, job_id: str) -> None:
        """Stop a job that the client cancelled; the store must know already."""
        self._end([job_id], Stop.CANCEL)

    def drop(self, job_ids: Iterable[str]) -> None:
        """Stop jobs that another process owns by now."""
        self._end(job_ids, Stop.LOST)

    def held(self) -> Mapping[str, int]:
        """The fences of the jobs that this process has claimed, by id."""
        return {job_id: one.fence for job_id, one in self._attempts.items() if one.fence is not None}

    def runs(self, job_id: str) -> bool:
        """Whether the job is in this process."""
        return job_id in self._attempts

    def position(self, job_id: str) -> int:
        """The job's place among those here that wait for their first step, 1 being next; 0 if it doesn't wait."""
        return self._forecast.position(job_id)

    def eta_s(self, job_id: str) -> float | None:
        """Seconds until the job is done; None while unknown."""
        return self._forecast.eta_s(job_id)

    def first_eta_s(self) -> float | None:
        """Seconds until the first of the jobs here is done; None while unknown, and if there is none."""
        return self._forecast.first_eta_s()

    def forecast(self, plan: OperationPlan, tenant: str) -> Forecast:
        """What the tenant's job would meet if it came now."""
        return self._forecast.forecast(plan, tenant)

    def demand(self, stage: str) -> Demand:
        """The work of all jobs here for a denoising stage."""
        return Demand(self._owner, *self._forecast.demand(stage))

    def depth(self) -> tuple[int, int]:
        """The number of jobs here before their first step, and past it."""
        waiting = sum(one.first_step_s is None for one in self._attempts.values())
        return waiting, len(self._attempts) - waiting

    def lanes_without_place(self) -> Mapping[str, int]:
        """The lanes of each denoising stage that wait in front of its replicas, by the stage's name in the settings."""
        return self._calls.lanes_without_place()

    async def drain(self, timeout_s: float) -> None:
        """Start no more jobs, wait `timeout_s` for those here to end, then give the rest back to the queue.

        A job whose stage is gone is given back at once: another router may reach one.
        """
        self._draining = True
        self._calls.stop_waiting()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        self._end(list(self._attempts), Stop.RELEASE)
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._progress_writer.stop()

    def _end(self, job_ids: Iterable[str], why: Stop) -> None:
        for job_id in job_ids:
            if job_id in self._attempts:
                self._attempts[job_id].end(why)

    async def _run(self, attempt: Attempt, request_id: str) -> None:
        """Make one attempt; raises nothing."""
        job_id = attempt.job.id
        ids = {"job_id": job_id, **({"request_id": request_id} if request_id else {})}
        ended: Job | None = None
        with bound(**ids), sensitive(*attempt.operation.prompts):
            try:
                with self._traces.attempt(job_id):
                    ended = await self._claim_and_work(attempt)
            except StaleLease:
                log.warning("the job went on to another owner")
            except StoreUnavailable as error:
                cause = repr(error.__cause__)
                log.error("the job database didn't answer; the job waits for its lease to end", cause=cause)  # noqa: TRY400
            except Exception:
                log.exception("an attempt at a job broke; the job waits for its lease to end")
            finally:
                del self._attempts[job_id]
                self._forecast.changed()
            if ended is None or not ended.state.terminal:
                self._hub.leave(job_id)
                return
            if ended.state is JobState.CANCELLED or ended.error_code == DeadlineExceeded.code:
                self._metrics.saved(self._forecast.left_s(attempt), ended.error_code or Cancelled.code)
            if attempt.eta_s is not None and ended.state in (JobState.COMPLETE, JobState.BLOCKED):
                self._metrics.estimated(attempt.eta_s, _seconds_of(ended))
            self.report(ended)
            await self._forget_inputs(attempt)

    async def _forget_inputs(self, attempt: Attempt) -> None:
        """Delete the pictures of a job that has ended; what can't be deleted now is swept later."""
        generation = attempt.operation
        begun_with, steering = True, 0
        if isinstance(generation, ResolvedGeneration):
            begun_with, steering = generation.image is not None, generation.steering_pictures
        ingredients = generation.ingredients
        if not (begun_with or steering or ingredients):
            return
        try:
            await self._images.delete_inputs(
                attempt.job.id, begun_with=begun_with, steering=steering, ingredients=ingredients
            )
        except StoreUnavailable as error:
            log.warning("a job's pictures stay until they are swept", cause=repr(error.__cause__))

    def report(self, job: Job) -> None:
        """Tell a job's watchers, the log and the metrics that it has ended, here or elsewhere."""
        self._hub.end(job)
        self._traces.ended(job)
        seconds = _seconds_of(job)
        self._metrics.ended(job.state, seconds, job.error_code)
        log.info("job ended", state=job.state.value, code=job.error_code, seconds=round(seconds, 3))

    async def _claim_and_work(self, attempt: Attempt) -> Job | None:
        """The job at its end; None if this attempt didn't end it."""
        limits = self._settings.jobs
        job_id = attempt.job.id
        encoding: Encoding | None = None
        if isinstance(attempt.plan, Plan) and not attempt.plan.operation.references:
            encoding = self._calls.encoding(attempt.plan.encoding)
            encoding.response()  # the prompt is encoded while the claim is written
        claimed = await self._store.claim(
            job_id, owner=self._owner, lease_s=limits.lease_s, max_attempts=limits.max_attempts
        )
        if claimed is None:
            return await self._ended_before(job_id)
        fence = attempt.fence = claimed.fence
        if fence > 1:  # it was somebody's before
            attempt.go_on_from(await self._store.kept(job_id))
            self._forecast.changed()
        attempt.work = asyncio.create_task(self._work(attempt, claimed, encoding))
        if attempt.stop is not None:
            attempt.work.cancel()
        await asyncio.wait({attempt.work})
        if attempt.work.cancelled():
            return await self._stopped(attempt, fence)
        error = attempt.work.exception()
        if self._draining and isinstance(error, StageUnavailable):
            return await self._release(attempt, fence)
        if error is not None:
            return await self._failed(attempt, fence, error)
        drawn = attempt.work.result()
        result = self._result(attempt, claimed, drawn)
        shown = sum(image.shown for image in drawn)
        self._metrics.images(shown, len(drawn) - shown)
        end = self._store.complete if shown else self._store.block
        return await self._persist(lambda: end(job_id, fence, result, attempt.progress))

    async def _ended_before(self, job_id: str) -> Job | None:
        """A job that could not be claimed because it has ended; None if another owns it or it is deleted."""
        try:
            job = await self._store.get(job_id)
        except UnknownJob:
            return None
        return job if job.state.terminal else None

    async def _stopped(self, attempt: Attempt, fence: int) -> Job | None:
        job_id = attempt.job.id
        match attempt.stop:
            case Stop.CANCEL:
                return await self._persist(lambda: self._store.cancelled(job_id, fence, attempt.progress))
            case Stop.LOST:
                raise StaleLease(f"job {job_id} is another's")
            case Stop.RELEASE:
                return await self._release(attempt, fence)
            case None:
                return await self._failed(attempt, fence, RuntimeError("cancelled, and nobody asked for it"))

    async def _release(self, attempt: Attempt, fence: int) -> Job:
        await self._progress_writer.keep(attempt, fence)
        return await self._persist(lambda: self._store.release(attempt.job.id, fence))

    async def _failed(self, attempt: Attempt, fence: int, error: BaseException) -> Job:
        if isinstance(error, DarkroomError):
            code, message = error.code, str(error)
            log.warning("job failed", code=code, reason=message)
        else:
            code, message = DarkroomError.code, "the job failed unexpectedly; the service's log says why"
            log.error("a job failed for a reason that is a bug", exc_info=error)
        # it names the file, which clients mustn't learn, but whoever adds the model
        if type(error) is CheckpointError and not self._adds_a_model(attempt):
            message = "the model's checkpoint can't be loaded; the service's log names the file"
        at = attempt.progress
        return await self._persist(lambda: self._store.fail(attempt.job.id, fence, code=code, message=message, at=at))

    def _adds_a_model(self, attempt: Attempt) -> bool:
        """Whether the job draws the first image of a model that is being added."""
        operation = attempt.operation
        model = self._present().models.get(operation.model) if isinstance(operation, ResolvedGeneration) else None
        return isinstance(model, AddedModel) and model.addition == attempt.job.id

    async def _work(self, attempt: Attempt, job: Job, encoding: Encoding | None) -> list[DrawnImage]:
        """Draw all images of the job at the same time. Raises the first error of any of them."""
        timeout_s = attempt.operation.timeout_s
        left = (job.created_at + timedelta(seconds=timeout_s) - utc_now()).total_seconds()
        drawing = await self._drawing(attempt, job, encoding, time.monotonic() + left)

        async def draw(index: int) -> DrawnImage:
            image = await drawing.draw(index)
            self._forecast.drew(attempt, image)
            self._hub.progress(job.id, attempt.progress, {})
            return image

        try:
            async with asyncio.timeout(left), asyncio.TaskGroup() as group:
                tasks = [group.create_task(draw(index)) for index in range(attempt.operation.n)]
        except TimeoutError:
            raise DeadlineExceeded(f"the job wasn't done within its {timeout_s:g} s") from None
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        return [task.result() for task in tasks]

    async def _drawing(
        self, attempt: Attempt, job: Job, encoding: Encoding | None, deadline: float
    ) -> GenerationExecutor | UpscaleExecutor:
        """The executor that draws the job's images; `encoding` of its prompt if that could begin before the claim."""
        plan = attempt.plan
        finisher = ImageFinisher(
            calls=self._calls,
            images=self._images,
            traces=self._traces,
            settings=self._settings.images,
            watermark=self._watermark,
            signing=await self._signing(job.id, attempt.operation),
            operation=attempt.operation,
            job_id=job.id,
            fence=job.fence,
        )

        def progress(event: LaneProgress) -> None:
            self._moved(attempt, event)

        if isinstance(plan, UpscalePlan):
            return UpscaleExecutor(self._calls, self._images, plan, finisher, self._upscales, progress)
        steering = await self._steering(job.id, plan.operation)
        references = steering.to_encode(plan.operation)
        if encoding is None:
            encoding = self._calls.encoding(replace(plan.encoding, references=references))
        second = plan.hires_encoding
        return GenerationExecutor(
            calls=self._calls,
            finisher=finisher,
            plan=plan,
            encoding=encoding,
            frame=await self._frame(job.id, plan.operation),
            snapshots=attempt.snapshots,
            state_every=self._settings.jobs.state_every,
            tenant=job.tenant,
            deadline=deadline,
            costs=self._costs,
            progress=progress,
            traces=self._traces,
            hires_encoding=None if second is None else self._calls.encoding(replace(second, references=references)),
            detail_encodings=[
                self._calls.encoding(plan.detail_encoding(number)) for number in range(len(plan.operation.details))
            ],
            steering=steering,
        )

    async def _signing(self, job_id: str, operation: Operation) -> Signing | None:
        """What signs the job's images, with their ingredients. Raises UnknownImage, StoreUnavailable."""
        if self._signer is None:
            return None
        ingredients = [await self._images.read_ingredient(job_id, index) for index in range(operation.ingredients)]
        return Signing(self._signer, tuple(ingredients))

    async def _frame(self, job_id: str, generation: ResolvedGeneration) -> Frame | None:
        """The picture and mask that the job's images begin with. Raises UnknownImage, StoreUnavailable."""
        image = generation.image
        if image is None:
            return None
        data = await self._images.read_input(job_id)
        size = generation.width, generation.height
        return await asyncio.to_thread(lambda: frame_of(Canvas.from_png(data), image, *size))

    async def _steering(self, job_id: str, generation: ResolvedGeneration) -> SteeringPictures:
        """The pictures that steer the job, as they are stored. Raises UnknownImage, StoreUnavailable."""
        files = [await self._images.read_steering(job_id, index) for index in range(generation.steering_pictures)]
        return await asyncio.to_thread(SteeringPictures.read, generation, files)

    def _moved(self, attempt: Attempt, event: LaneProgress) -> None:
        """Report a lane's step to the job's watchers; the store follows later, as it may miss some."""
        self._forecast.moved(attempt, event)
        if attempt.first_step_s is None:
            attempt.first_step_s = (utc_now() - attempt.job.created_at).total_seconds()
            self._forecast.waited(attempt, attempt.first_step_s)
            self._metrics.waited(attempt.first_step_s)
        previews: dict[int, Pixels] = {}
        if event.preview is not None:
            shown = preview_of(event.preview, attempt.operation.safety, self._settings.safety.previews)
            previews = {event.image: shown}
        self._hub.progress(attempt.job.id, attempt.progress, previews)
        self._progress_writer.moved(attempt)

    async def _persist(self, write: Callable[[], Awaitable[Job]]) -> Job:
        """Write a job's end; try again while the database is away. Raises StoreUnavailable after a lease's time."""
        until = time.monotonic() + self._settings.jobs.lease_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return await write()
            except StoreUnavailable:
                if time.monotonic() + pause_s > until:
                    raise
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _result(self, attempt: Attempt, job: Job, drawn: list[DrawnImage]) -> dict[str, Any]:
        """The job's result as it is stored."""
        timings = {
            "queued_s": attempt.first_step_s,
            "denoise_s": max(image.denoise_s for image in drawn),
            "decode_s": max(image.decode_s for image in drawn),
            "upscale_s": max(image.upscale_s for image in drawn),
            "classify_s": max(image.classify_s for image in drawn),
            "store_s": max(image.store_s for image in drawn),
            "device_s": sum(image.device_s for image in drawn),
            "total_s": (utc_now() - job.created_at).total_seconds(),
        }
        return {
            "images": [image.record for image in drawn],
            "timings": {name: None if value is None else round(value, 4) for name, value in timings.items()},
        }


def _seconds_of(job: Job) -> float:
    """From a job's acceptance to its end."""
    return ((job.finished_at or utc_now()) - job.created_at).total_seconds()


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group, however deep."""
    first = errors.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
