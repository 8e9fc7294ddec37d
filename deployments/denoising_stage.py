"""The base of the denoising stages: an engine in a replica, with its health, streams and metrics.

A replica gives each request to its engine as a lane. It accepts about two full batches; further requests wait in the
routers (dispatch.py). torch and diffusers are imported when a replica starts, because the process that only binds the
deployments needs neither.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

from ray import serve

from deployments.config import StageSettings
from deployments.demand import Demand, DemandBoard
from deployments.dispatch import Dispatch, ReplicaLoad
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import ConditioningSettings, LoraSettings
from deployments.engine.errors import DarkroomError, ReplicaFull, Withdrawn
from deployments.engine.memory.limits import AllowedSizes
from deployments.engine.stats import EngineStats
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult, Event
from deployments.lane_ledger import LaneLedger
from deployments.metrics import EngineMetrics
from deployments.replica import (
    StageDescription,
    claim_device,
    describe_replica,
    is_stopping,
    settings_for,
    without_garbage_collection,
)

logger = logging.getLogger("ray.serve")

METRICS_PERIOD_S = 1.0
_STOPPING_PERIOD_S = 0.5


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """Whether Serve may log it. That a lane goes back to its router, which has another place for it, is no failure."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, ReplicaFull | Withdrawn)


class DenoisingStage:
    """A stage that denoises, with one engine on one device.

    A replica is healthy once its preloaded checkpoints are in memory and have drawn an image. When Serve stops it,
    streams in flight may finish for hand_over_after_s seconds; the rest then end with their lanes' snapshots and
    EngineStopped.

    Args:
        settings: the stage's settings.
        catalogue: the checkpoints of the stage, by model name.
        allowed: the allowed sizes of each checkpoint; one whose smallest size doesn't fit the memory isn't loaded.
        loras: the folder of LoRAs.
        conditioning: the folders of conditionings.
        sizes: width and height of an image of each checkpoint that a replica draws before it is healthy.
    """

    def __init__(
        self,
        settings: StageSettings,
        catalogue: Mapping[str, CheckpointSpec],
        allowed: Mapping[str, AllowedSizes] | None = None,
        loras: LoraSettings | None = None,
        conditioning: ConditioningSettings | None = None,
        sizes: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        with without_garbage_collection():
            from deployments.engine.engine import Engine

        logger.addFilter(is_worth_a_line)
        self._claim = claim_device()
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
            if sizes is not None:
                self._warm_up(checkpoint, *sizes[checkpoint])
        replica = serve.get_replica_context().replica_id.unique_id
        self._ledger = LaneLedger(replica, self._engine.rows, self._engine.row_seconds)
        self._demands = DemandBoard()
        self._metrics = EngineMetrics()
        self._advertise = _advertiser(settings.engine.resident_checkpoints)
        self._advertised: tuple[str, ...] = ()
        self._hand_over_after_s = settings.hand_over_after_s
        loop = asyncio.get_running_loop()
        self._tasks = loop.create_task(self._report()), loop.create_task(self._hand_over())

    async def denoise(
        self, request: DenoiseRequest, conditioning: Conditioning, dispatch: Dispatch | None = None
    ) -> AsyncIterator[Event | ReplicaLoad]:
        """Draw one image: Progress events, then one DenoiseResult.

        Closing or cancelling the stream removes the lane at the next step.

        Args:
            request: The lane.
            conditioning: Its encoded texts.
            dispatch: Of the router that chose this replica. It gets the replica's load, first and whenever that has
                changed, and has its lanes refused where there is no room. None: no load is reported, nothing refused.

        Raises:
            ReplicaFull: There is no room for the lane.
            DarkroomError: As the engine does.
        """
        accepted = self._ledger.accept(request, bounded=dispatch is not None)
        try:
            if dispatch is not None:
                yield self._ledger.report(dispatch.sender, request, self._engine.resident, accepted=accepted)
            if not accepted:
                raise ReplicaFull(f"the replica has no room for lane {request.lane_id}")
            await self._advertise(request.checkpoint)
            async with aclosing(self._engine.stream(request, conditioning)) as events:
                async for event in events:
                    if isinstance(event, DenoiseResult):
                        self._metrics.waited(event.timings.queued_s)
                    if dispatch is not None and self._ledger.owes(dispatch.sender):
                        yield self._ledger.report(dispatch.sender, request, self._engine.resident)
                    yield event
        except DarkroomError as error:
            if not isinstance(error, ReplicaFull | Withdrawn):
                logger.warning("Lane %s ended with %s: %s", request.lane_id, error.code, error)
            raise
        finally:
            if accepted:
                self._ledger.remove(request)

    async def withdraw(self, lane_ids: Sequence[str], _dispatch: Dispatch) -> None:
        """Give back those of the lanes that haven't taken a step: their streams end with Withdrawn.

        The Dispatch names the replica that this is for.
        """
        for lane_id in lane_ids:
            self._engine.withdraw(lane_id)

    async def retain(self, added: Sequence[str], _dispatch: Dispatch) -> None:
        """Forget the checkpoints that came with requests and aren't among these, each when no lane uses it.

        The Dispatch names the replica that this is for.
        """
        self._engine.retain(added)

    async def report_demand(self, demand: Demand) -> None:
        """A router's work for all replicas of this stage; the autoscaler is told of it with this replica's metrics."""
        self._demands.report(demand)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve hands to the autoscaling policy (autoscaling.py)."""
        return self._demands.metrics()

    async def describe(self) -> StageDescription:
        """The replica's device, claim and checkpoints. Raises EngineStopped if it can no longer serve."""
        self._engine.check()
        stats = self._engine.stats()
        return replace(
            describe_replica(self._claim, device=stats.device, dtype=stats.dtype, checkpoints=stats.resident),
            largest_sizes=self._engine.largest_sizes(),
            compiled=stats.compiled,
            compile_failures=stats.compile_failures,
            memory=self._engine.memory(),
        )

    async def check_schedule(self, request: DenoiseRequest) -> None:
        """Raise InvalidRequest if the checkpoint's schedule has no step for the request; unknown where not loaded."""
        table = self._engine.table(request)
        if table is not None:
            await asyncio.wrap_future(table)

    async def stats(self, _dispatch: Dispatch | None = None) -> EngineStats:
        """The engine's counters. The Dispatch names the replica that is asked."""
        return self._engine.stats()

    def check_health(self) -> None:
        """Serve's health check: raises EngineStopped if the engine's thread or its device is gone."""
        self._engine.check()
        for task in self._tasks:
            if task.done():
                task.result()

    def __del__(self) -> None:
        """Called by Serve when the replica has drained, and later by Python."""
        for task in getattr(self, "_tasks", ()):
            task.cancel()
        if hasattr(self, "_engine"):
            self._engine.stop()

    def _warm_up(self, checkpoint: str, width: int, height: int) -> None:
        """Draw an image before anybody asks. One that fails is no reason not to start: requests may be others."""
        try:
            self._engine.warm_up(checkpoint, width, height).result()
        except DarkroomError as error:
            logger.warning("Checkpoint %s can't draw %d x %d: %s", checkpoint, width, height, error)

    async def _report(self) -> None:
        """Every second, send counters to Prometheus and the checkpoints in memory to Serve's request routers."""
        while True:
            stats = self._engine.stats()
            self._metrics.record(stats)
            if stats.resident != self._advertised:
                for checkpoint in stats.resident:
                    await self._advertise(checkpoint)
                self._advertised = stats.resident
            await asyncio.sleep(METRICS_PERIOD_S)

    async def _hand_over(self) -> None:
        """When Serve stops the replica: let short lanes end, then end all others with their snapshots."""
        while not is_stopping():  # noqa: ASYNC110  # Serve has no event for it
            await asyncio.sleep(_STOPPING_PERIOD_S)
        await asyncio.sleep(self._hand_over_after_s)
        stats = self._engine.stats()
        logger.info("Handing over %d active and %d waiting lanes", stats.lanes_active, stats.lanes_waiting)
        await asyncio.to_thread(self._engine.stop)


def _advertiser(checkpoints: int) -> Callable[[str], Awaitable[str]]:
    """A function that tells Serve which checkpoint this replica holds, so that requests for that model id come here.

    The engine alone decides what is in memory, because Serve's own loader would evict what is in use and loads one
    model at a time. So Serve's "model" is just the name. Its list is as long as the engine's and is updated in the same
    order, least recently used first, so that Serve drops what the engine dropped.
    """

    @serve.multiplexed(max_num_models_per_replica=checkpoints)
    async def advertise(checkpoint: str) -> str:
        return checkpoint

    advertised: Callable[[str], Awaitable[str]] = advertise
    return advertised
