"""Calls of the stages, repeated when a replica dies.

Serve doesn't repeat a call that a replica has taken: when that replica dies, the caller gets the error. Here the call
is made again, as soon as a replica of the stage answers, a bounded number of times. The same request draws the same
image, so a repeated call changes nothing but the time it takes; a lane goes on from its newest snapshot. Errors of the
request itself pass as they are.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

from deployments.config import DENOISING_STAGES, ReplicaSettings, StagesSettings
from deployments.dispatch import Dispatch, ReplicaLoad
from deployments.engine.errors import (
    DarkroomError,
    DeviceUnavailable,
    EngineStopped,
    ReplicaFull,
    StateRefused,
    Withdrawn,
)
from deployments.engine.lanes.snapshot import LaneSnapshot
from deployments.engine.types import (
    Conditioning,
    DenoiseRequest,
    DenoiseResult,
    DetectionRequest,
    Detections,
    Event,
    Pixels,
    Progress,
    SafetyScore,
    TextEncodingRequest,
    TilesDone,
    UpscaleEvent,
    UpscaleRequest,
    UpscaleResult,
)
from deployments.replica_lists import DeploymentKey, running
from serve_app.dispatch.dispatcher import Dispatcher, Place
from serve_app.errors import StageUnavailable
from serve_app.observability.logs import get_logger

log = get_logger(__name__)

T = TypeVar("T")

# the pause between two tries to reach a stage that doesn't answer doubles from the first to the second
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0
_ANSWER_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Stages:
    """The handles of the stages.

    Attributes:
        denoisers: by their key in the settings' `stages`.
        classifier: None if safety is off.
        upscaler: None if no folder of upscalers is set.
        detector: None if no folder of detectors is set.
    """

    text_encoder: DeploymentHandle[Any]
    denoisers: Mapping[str, DeploymentHandle[Any]]
    classifier: DeploymentHandle[Any] | None
    upscaler: DeploymentHandle[Any] | None = None
    detector: DeploymentHandle[Any] | None = None

    @classmethod
    def of(cls, handles: Mapping[str, DeploymentHandle[Any]]) -> "Stages":
        """From handles by their key in the settings' `stages`."""
        denoisers: dict[str, DeploymentHandle[Any]] = {
            name: handles[name] for name in DENOISING_STAGES if name in handles
        }
        others = (handles.get(name) for name in ("nsfw_classifier", "upscaler", "detector"))
        return cls(handles["text_encoder"], denoisers, *others)

    def by_name(self) -> Mapping[str, DeploymentHandle[Any]]:
        """Handles of the stages that there are, by their key in the settings' `stages`."""
        others = {
            "text_encoder": self.text_encoder,
            "nsfw_classifier": self.classifier,
            "upscaler": self.upscaler,
            "detector": self.detector,
        }
        return {**self.denoisers, **{name: handle for name, handle in others.items() if handle is not None}}


class Encoding:
    """The encoding of one job's prompt, shared by its images and stages, requested again if it was lost.

    The response is passed on without being awaited, so the embeddings go from the encoder straight to the stage.
    """

    def __init__(self, encoder: DeploymentHandle[Any], request: TextEncodingRequest) -> None:
        self._encoder = encoder
        self._request = request
        self._response: DeploymentResponse[Conditioning] | None = None
        self.requested_ns = 0
        """When it was requested last, in nanoseconds since the epoch."""

    def response(self) -> DeploymentResponse[Conditioning]:
        """The encoding, pending or done."""
        if self._response is None:
            self.requested_ns = time.time_ns()
            self._response = self._encoder.encode.remote(self._request)
        return self._response

    def renew(self, used: DeploymentResponse[Conditioning]) -> None:
        """Request the encoding again: `used` was part of a call that was lost, and may be the reason."""
        if self._response is used:
            self._response = None


class StageCalls:
    """The calls that a job makes.

    Each raises StageUnavailable when `attempts` or `patience_s` is used up, and the stage's own DarkroomError.

    Args:
        stages: handles.
        settings: of the stages.
        sender: this router's id.
        attempts: how often a call is made in all.
        patience_s: seconds to wait for a stage that doesn't answer, besides those that its replicas take to start.
    """

    def __init__(
        self, stages: Stages, settings: StagesSettings, *, sender: str, attempts: int, patience_s: float
    ) -> None:
        self._stages = stages
        self._dispatchers = {
            name: Dispatcher(
                DeploymentKey(handle.app_name, handle.deployment_name),
                getattr(settings, name).engine,
                sender,
                partial(_withdraw, handle, sender),
            )
            for name, handle in stages.denoisers.items()
        }
        self._sender = sender
        self._attempts = attempts
        self._patience_s = {
            handle.deployment_name: patience_s + _startup_s(getattr(settings, name))
            for name, handle in stages.by_name().items()
        }

    def encoding(self, request: TextEncodingRequest) -> Encoding:
        """The encoding of a prompt, to be passed to `denoise`."""
        return Encoding(self._stages.text_encoder, request)

    async def denoise(
        self,
        stage: str,
        request: Callable[[int], DenoiseRequest],
        encoding: Encoding,
        progress: Callable[[Progress], None],
        resume: LaneSnapshot | None = None,
        work_s: float = 0.0,
    ) -> DenoiseResult:
        """Run one lane, when it has got a place in its stage.

        Args:
            stage: the denoiser's key in the settings' `stages`.
            request: makes the request of an attempt, counted from 0, with a lane id of its own.
            encoding: of the prompt.
            progress: called at each step.
            resume: the snapshot to go on from; if the stage refuses it, the lane begins anew.
            work_s: device seconds that the lane is expected to take; 0 while nobody knows.
        """
        handle = self._stages.denoisers[stage]
        dispatcher = self._dispatchers[stage]
        newest = resume

        def on_progress(event: Progress) -> None:
            nonlocal newest
            newest = event.state or newest
            progress(event)

        async def attempt(number: int) -> DenoiseResult:
            nonlocal newest
            lane = request(number)
            if newest is not None:
                try:
                    return await self._denoise(
                        handle, dispatcher, replace(lane, resume=newest), work_s, encoding, on_progress
                    )
                except Exception as error:
                    refusal = unwrapped(error)
                    if not isinstance(refusal, StateRefused):
                        raise
                    log.warning("a lane begins anew", stage=handle.deployment_name, cause=str(refusal))
                    newest = None
            return await self._denoise(handle, dispatcher, lane, work_s, encoding, on_progress)

        return await self._retried(handle, attempt)

    async def _denoise(
        self,
        handle: DeploymentHandle[Any],
        dispatcher: Dispatcher,
        lane: DenoiseRequest,
        work_s: float,
        encoding: Encoding,
        on_progress: Callable[[Progress], None],
    ) -> DenoiseResult:
        """One attempt at one lane, at as many places as it takes to be taken."""
        options = handle.options(method_name="denoise", stream=True, multiplexed_model_id=lane.checkpoint)
        since = time.monotonic()
        while True:
            async with dispatcher.place(_after(lane, time.monotonic() - since), work_s) as place:
                on_event = partial(_hear, place, on_progress)
                conditioning = encoding.response()
                sent = _after(lane, time.monotonic() - since)
                try:
                    stream: DeploymentResponseGenerator[Event] = options.remote(sent, conditioning, place.dispatch)
                    return await _result(stream, DenoiseResult, on_event)
                except BaseException as error:
                    if isinstance(unwrapped(error), ReplicaFull | Withdrawn):
                        continue
                    encoding.renew(conditioning)  # a cancelled call may be the encoder's own end
                    raise

    @property
    def denoisers(self) -> Collection[str]:
        """The denoising stages, by their keys in the settings' `stages`."""
        return self._dispatchers.keys()

    def close(self) -> None:
        """No lane is sent any more."""
        for dispatcher in self._dispatchers.values():
            dispatcher.close()

    def replicas(self, stage: str) -> int | None:
        """Running replicas of a denoising stage; None while nobody has said."""
        return self._dispatchers[stage].replicas

    def lanes_without_place(self) -> Mapping[str, int]:
        """The lanes of each denoising stage that wait in front of its replicas."""
        return {stage: dispatcher.waiting for stage, dispatcher in self._dispatchers.items()}

    async def check_schedule(self, stage: str, request: DenoiseRequest) -> None:
        """Raise InvalidRequest if the stage knows that the checkpoint's schedule has no step for the request.

        A stage that doesn't answer soon is ignored: it refuses the lane itself later.
        """
        handle = self._stages.denoisers[stage].options(multiplexed_model_id=request.checkpoint)
        await _raise_refusal(handle.check_schedule.remote(request))

    async def check_texts(self, request: TextEncodingRequest) -> None:
        """Raise InvalidRequest if the text encoder can't take the request's texts, such as too many tokens.

        An encoder that doesn't answer soon is ignored: the job itself fails later.
        """
        await _raise_refusal(self._stages.text_encoder.check.remote(request))

    async def retain(self, stage: str, added: Sequence[str]) -> None:
        """Let every replica of a denoising stage and of the text encoder forget checkpoints that came with requests.

        One that doesn't answer keeps them until it needs their room.

        Args:
            stage: its key in the settings' `stages`.
            added: those that it is to keep.
        """
        handles = self._stages.text_encoder, self._stages.denoisers[stage]
        await asyncio.gather(*(self._retain(handle, added) for handle in handles))

    async def _retain(self, handle: DeploymentHandle[Any], added: Sequence[str]) -> None:
        key = DeploymentKey(handle.app_name, handle.deployment_name)

        async def tell(replica: str) -> None:
            try:
                await answer(handle.retain.remote(added, Dispatch(self._sender, replica)), _ANSWER_TIMEOUT_S)
            except (TimeoutError, DarkroomError, RayError, RayServeException) as error:
                cause = type(error).__name__
                log.warning("a replica wasn't told what to forget", stage=handle.deployment_name, cause=cause)

        if running(key) is None:
            await tell("")  # any of them; then it is known who there is
        await asyncio.gather(*map(tell, running(key) or ()))

    def stop_waiting(self) -> None:
        """Don't wait from now on for a stage that doesn't answer."""
        self._patience_s = dict.fromkeys(self._patience_s, 0.0)

    async def classify(self, image: Pixels) -> SafetyScore:
        """Score one image: (height, width, 3), uint8."""
        handle = self._stages.classifier
        if handle is None:
            raise StageUnavailable("no classifier was started")

        async def attempt(_number: int) -> SafetyScore:
            score: SafetyScore = await handle.classify.remote(image)
            return score

        return await self._retried(handle, attempt)

    async def detect(self, request: DetectionRequest) -> Detections:
        """What stands in one image."""
        handle = self._stages.detector
        if handle is None:
            raise StageUnavailable("no detector was started")

        async def attempt(_number: int) -> Detections:
            found: Detections = await handle.detect.remote(request)
            return found

        return await self._retried(handle, attempt)

    async def upscale(self, request: UpscaleRequest, progress: Callable[[TilesDone], None]) -> UpscaleResult:
        """Enlarge a picture with a model."""
        handle = self._stages.upscaler
        if handle is None:
            raise StageUnavailable("no upscaler was started")

        async def attempt(_number: int) -> UpscaleResult:
            stream: DeploymentResponseGenerator[UpscaleEvent] = handle.options(
                method_name="upscale", stream=True
            ).remote(request)
            return await _result(stream, UpscaleResult, progress)

        return await self._retried(handle, attempt)

    async def _retried(self, handle: DeploymentHandle[Any], attempt: Callable[[int], Awaitable[T]]) -> T:
        """The result of the first attempt that isn't lost. Raises StageUnavailable, and what the stage raises."""
        name = handle.deployment_name
        for number in range(self._attempts):
            try:
                return await attempt(number)
            except asyncio.CancelledError:
                if _being_cancelled():
                    raise
                # a replica that goes cancels its calls, and Serve hands that on as our own cancellation
                lost = "the call was cancelled there"
            except Exception as error:
                if _being_cancelled():
                    raise asyncio.CancelledError from None  # Serve may turn ours into an exception of its own
                cause = unwrapped(error)
                if not is_lost(cause):
                    raise cause from None
                lost = type(cause).__name__
            log.warning("a stage was lost under a call", stage=name, cause=lost, attempt=number + 1)
            if number + 1 < self._attempts:
                await self._wait_for_replica(handle, _FIRST_PAUSE_S * 2**number)
        raise StageUnavailable(f"{name} was lost under this request {self._attempts} times")

    async def _wait_for_replica(self, handle: DeploymentHandle[Any], pause: float) -> None:
        """Wait until a replica of the stage answers, with pauses from `pause` seconds on. Raises StageUnavailable."""
        name = handle.deployment_name
        since = time.monotonic()
        while time.monotonic() < since + self._patience_s[name]:
            await asyncio.sleep(min(pause, _LONGEST_PAUSE_S))  # the dead replica may still be on Serve's list
            pause *= 2
            try:
                await answer(handle.describe.remote(), _ANSWER_TIMEOUT_S)
            except (TimeoutError, EngineStopped, DeviceUnavailable, RayError, RayServeException):
                continue
            return
        raise StageUnavailable(f"{name} has had no live replica for {time.monotonic() - since:.0f} s")


def _startup_s(settings: ReplicaSettings) -> float:
    """Seconds until a replica that replaces another works, its node's start included."""
    return 0.0 if settings.autoscaling is None else settings.autoscaling.startup_s


def _hear(place: Place, on_progress: Callable[[Progress], None], event: Progress | ReplicaLoad) -> None:
    """An event of a lane's stream."""
    if isinstance(event, ReplicaLoad):
        place.said(event)
    else:
        place.stepped()
        on_progress(event)


def _after(lane: DenoiseRequest, waited_s: float) -> DenoiseRequest:
    """The request after it has waited for a place."""
    timeout_s = None if lane.timeout_s is None else max(0.001, lane.timeout_s - waited_s)
    return replace(lane, waited_s=lane.waited_s + waited_s, timeout_s=timeout_s)


def _withdraw(handle: DeploymentHandle[Any], sender: str, replica: str, lane_ids: Sequence[str]) -> None:
    """Ask a replica for lanes back. Nothing is lost if it doesn't answer: they are drawn there then."""
    handle.withdraw.remote(lane_ids, Dispatch(sender, replica))


async def _result(stream: DeploymentResponseGenerator[Any], last: type[T], on_event: Callable[[Any], None]) -> T:
    """The last item of a stage's stream; `on_event` gets those before.

    A stream that isn't read to its end is cancelled, so that its lane leaves at the next step.
    """
    result: T | None = None
    exhausted = False
    try:
        async for event in stream:
            if isinstance(event, last):
                result = event
            else:
                on_event(event)
        exhausted = True
    finally:
        if not exhausted:
            stream.cancel()
    if result is None:
        raise EngineStopped("the stage's stream ended without a result")
    return result


async def _raise_refusal(response: DeploymentResponse[None]) -> None:
    """Raise what a stage's check raises; nothing if it doesn't answer soon."""
    try:
        await answer(response, _ANSWER_TIMEOUT_S)
    except TimeoutError:
        return
    except Exception as error:
        cause = unwrapped(error)
        if not is_lost(cause):
            raise cause from None


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def answer(response: DeploymentResponse[T], timeout_s: float) -> T:
    """The response's value; the call is withdrawn if there is none.

    Raises:
        TimeoutError: it took longer than `timeout_s`.
        EngineStopped: a replica that ends cancelled the call, which Serve passes on as our own cancellation.
    """
    try:
        async with asyncio.timeout(timeout_s):
            value: T = await response
            return value
    except BaseException as error:
        response.cancel()
        if isinstance(error, asyncio.CancelledError) and not _being_cancelled():
            raise EngineStopped("the call was cancelled there") from None
        raise


def unwrapped(error: BaseException) -> Exception:
    """What the replica raised, without Ray's wrapping."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    return error if isinstance(error, Exception) else RuntimeError(repr(error))


def is_lost(error: Exception) -> bool:
    """Whether the call failed because a process, a node or a device did, not because of its request."""
    return isinstance(error, (RayError, RayServeException, EngineStopped, DeviceUnavailable))
