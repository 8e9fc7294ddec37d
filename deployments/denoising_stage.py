"""What the denoising stages share: an engine in a replica, its health, its streams, its metrics.

A replica takes many requests at once and hands each to its engine as a lane; the queue that matters is the
engine's. The engine (torch, diffusers) is imported when a replica starts and not with this module: the
process that only binds the graph needs none of it. Knows nothing of HTTP, jobs or other stages.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from ray import serve

from deployments.config import StageSettings
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import NO_CONTROLNETS, ConditioningSettings, ControlnetSettings, LoraSettings
from deployments.engine.errors import DarkroomError
from deployments.engine.memory.limits import AllowedSizes, LargestSizes
from deployments.engine.memory.table import MemoryTable
from deployments.engine.stats import EngineStats
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult, Event
from deployments.leaving import leaving
from deployments.metrics import EngineMetrics
from deployments.replica import DeviceClaim, claim_device, settings_for
from deployments.uncollected import uncollected

logger = logging.getLogger("ray.serve")

METRICS_PERIOD_S = 1.0
_LEAVING_PERIOD_S = 0.5


@dataclass(frozen=True, slots=True)
class StageDescription:
    """What a replica says of itself.

    claim: GPUs assigned to it (0, a fraction, 1); gpu_ids: which, as Ray numbers them on its node.
    visible_devices: CUDA_VISIBLE_DEVICES of its process. checkpoints: in memory, least recently used first.
    largest_sizes: what its memory has room for, by checkpoint of its catalogue. quarantined: checkpoints that it
    refuses, because loaded again they were something else. compiled: its UNet forwards that are; compile_failures: how
    many couldn't be. memory: what its memory is planned to hold.
    """

    name: str
    replica_id: str
    device: str
    dtype: str
    claim: float
    gpu_ids: tuple[str, ...]
    visible_devices: str | None
    checkpoints: tuple[str, ...]
    largest_sizes: Mapping[str, LargestSizes] = field(default_factory=dict)
    quarantined: tuple[str, ...] = ()
    compiled: tuple[str, ...] = ()
    compile_failures: int = 0
    memory: MemoryTable | None = None


def describe_replica(
    claim: DeviceClaim,
    *,
    device: str,
    dtype: str,
    checkpoints: tuple[str, ...],
) -> StageDescription:
    """What every replica can say, of the one that this is called in; the arguments as in StageDescription."""
    context = serve.get_replica_context()
    return StageDescription(
        name=context.deployment,
        replica_id=context.replica_id.unique_id,
        device=device,
        dtype=dtype,
        claim=claim.gpus,
        gpu_ids=claim.gpu_ids,
        visible_devices=claim.visible_devices,
        checkpoints=checkpoints,
    )


class DenoisingStage:
    """A stage that denoises: one engine, one device, its part of the catalogue.

    A replica is healthy once the checkpoints it preloads are in memory. When it has to go, the streams in flight
    may finish for a while (hand_over_after_s); then they get their lanes' states and EngineStopped.
    """

    def __init__(
        self,
        settings: StageSettings,
        catalogue: Mapping[str, CheckpointSpec],
        allowed: Mapping[str, AllowedSizes] | None = None,
        loras: LoraSettings | None = None,
        controlnets: ControlnetSettings | None = None,
    ) -> None:
        """allowed: what may be asked of a checkpoint; one that has no memory for the least of it isn't loaded.

        loras, controlnets: None for none.
        """
        with uncollected():
            from deployments.engine.engine import Engine

        self._claim = claim_device()
        conditioning = ConditioningSettings(controlnets or NO_CONTROLNETS)
        engine = settings_for(self._claim, settings.engine)
        self._engine = Engine(engine, dict(catalogue), allowed=allowed, loras=loras, conditioning=conditioning)
        self._engine.start()
        for line in self._engine.memory().lines():
            logger.info(line)
        preload = settings.preload
        if preload is None:
            preload = tuple(catalogue)[: settings.engine.resident_checkpoints]
        for checkpoint in preload:
            logger.info("Loading checkpoint %s", checkpoint)
            self._engine.preload(checkpoint).result()
        self._metrics = EngineMetrics()
        self._advertise = _advertiser(settings.engine.resident_checkpoints)
        self._advertised: tuple[str, ...] = ()
        self._hand_over_after_s = settings.hand_over_after_s
        loop = asyncio.get_running_loop()
        self._tasks = loop.create_task(self._report()), loop.create_task(self._hand_over())

    async def denoise(self, request: DenoiseRequest, conditioning: Conditioning) -> AsyncIterator[Event]:
        """Run one lane: Progress events, then one DenoiseResult. Raises DarkroomError as the engine does.

        Closing or cancelling the stream takes the lane out at the next step.
        """
        await self._advertise(request.checkpoint)
        try:
            async with aclosing(self._engine.stream(request, conditioning)) as events:
                async for event in events:
                    if isinstance(event, DenoiseResult):
                        self._metrics.waited(event.timings.queued_s)
                    yield event
        except DarkroomError as error:
            logger.warning("Lane %s ended with %s: %s", request.lane_id, error.code, error)
            raise

    async def describe(self) -> StageDescription:
        """The replica's device, claim and checkpoints. Raises EngineStopped if it can't serve any more."""
        self._engine.check()
        stats = self._engine.stats()
        return replace(
            describe_replica(self._claim, device=stats.device, dtype=stats.dtype, checkpoints=stats.resident),
            largest_sizes=self._engine.largest_sizes(),
            quarantined=stats.quarantined,
            compiled=stats.compiled,
            compile_failures=stats.compile_failures,
            memory=self._engine.memory(),
        )

    async def check_schedule(self, request: DenoiseRequest) -> None:
        """Raise InvalidRequest where the checkpoint's schedule has no step for the request, if that is known here."""
        table = self._engine.table(request)
        if table is not None:
            await asyncio.wrap_future(table)

    async def stats(self) -> EngineStats:
        """What the engine has done so far."""
        return self._engine.stats()

    def check_health(self) -> None:
        """Serve's health check: raises EngineStopped if the engine's thread or its device is gone."""
        self._engine.check()
        for task in self._tasks:
            if task.done():
                task.result()

    def __del__(self) -> None:
        """Serve calls this when the replica has drained (and Python once more later)."""
        for task in getattr(self, "_tasks", ()):
            task.cancel()
        if hasattr(self, "_engine"):
            self._engine.stop()

    async def _report(self) -> None:
        """Once a second: counters to Prometheus, the checkpoints in memory to Serve's request routers."""
        while True:
            stats = self._engine.stats()
            self._metrics.record(stats)
            if stats.resident != self._advertised:
                for checkpoint in stats.resident:
                    await self._advertise(checkpoint)
                self._advertised = stats.resident
            await asyncio.sleep(METRICS_PERIOD_S)

    async def _hand_over(self) -> None:
        """Once the replica has to go: let short lanes end, then leave all others to those who asked for them."""
        while not leaving():  # noqa: ASYNC110  # Serve has no event for it
            await asyncio.sleep(_LEAVING_PERIOD_S)
        await asyncio.sleep(self._hand_over_after_s)
        stats = self._engine.stats()
        logger.info("Handing over %d lanes begun and %d waiting", stats.lanes_active, stats.lanes_waiting)
        await asyncio.to_thread(self._engine.stop)


def _advertiser(checkpoints: int) -> Callable[[str], Awaitable[str]]:
    """Tells Serve which checkpoints this replica holds, so that requests with that model id come here.

    What is in memory is decided by the engine alone: Serve's own loader would evict what is in use, and loads
    one model at a time. So the "model" that Serve holds is the name. Its list has as many places as the
    engine and is touched in the engine's order, least recently used first, so that it drops what the engine
    dropped.
    """

    @serve.multiplexed(max_num_models_per_replica=checkpoints)
    async def advertise(checkpoint: str) -> str:
        return checkpoint

    hold: Callable[[str], Awaitable[str]] = advertise
    return hold
