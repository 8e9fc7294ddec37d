"""Enlarges the picture of a job: by Lanczos here, or by the stage's models, then through the finisher.

A picture that was half enlarged when its router died begins anew, as it takes seconds. It can be cancelled anywhere.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from deployments.engine.types import Pixels, TilesDone, UpscaleRequest, UpscaleResult
from deployments.priority_semaphore import PrioritySemaphore
from serve_app.image_store.store import ImageStore
from serve_app.images.inpainting import resized
from serve_app.images.stored_pictures import read_kept
from serve_app.jobs.generation_executor import LaneProgress
from serve_app.jobs.image_finisher import DrawnImage, ImageFinisher
from serve_app.jobs.manifest import upscale_manifest
from serve_app.planning.plan import PRIORITIES
from serve_app.planning.upscale import UpscalePlan
from serve_app.stages.client import StageCalls

# pictures that a router enlarges at a time: input and result may have some 50 MB each
PICTURES_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class UpscaleExecutor:
    """Enlarges the picture of one attempt at a job.

    Attributes:
        semaphore: bounds the pictures in memory.
        progress: called for each batch of tiles.
    """

    calls: StageCalls
    images: ImageStore
    plan: UpscalePlan
    finisher: ImageFinisher
    semaphore: PrioritySemaphore
    progress: Callable[[LaneProgress], None]

    async def draw(self, index: int) -> DrawnImage:
        """Draw the job's only image. Raises DarkroomError."""
        async with self.semaphore.acquire(PRIORITIES[self.plan.operation.priority]):
            with self.finisher.traces.span("image", **{"darkroom.image.index": index}):
                return await self._draw(index)

    async def _draw(self, index: int) -> DrawnImage:
        operation = self.plan.operation
        data = await self.images.read_input(self.finisher.job_id)
        picture = await asyncio.to_thread(read_kept, data)
        since = time.monotonic()
        result: UpscaleResult | None = None
        with self.finisher.traces.span("upscale", **{"darkroom.upscaler": operation.upscaler}):
            if self.plan.stages[0].stage == "lanczos":
                enlarged = await asyncio.to_thread(resized, picture, "lanczos", operation.width, operation.height)
                self.progress(LaneProgress(index, 0, 1, 1, None))
            else:
                result = await self._by_model(index, picture)
                enlarged = result.image
        upscale_s = time.monotonic() - since
        drawn = await self.finisher.finish(
            index, enlarged, lambda outcome: upscale_manifest(operation, result, outcome)
        )
        return replace(drawn, device_s=0.0 if result is None else result.device_s, upscale_s=upscale_s)

    async def _by_model(self, index: int, picture: Pixels) -> UpscaleResult:
        operation = self.plan.operation
        priority = PRIORITIES[operation.priority]
        request = UpscaleRequest(operation.upscaler, picture, operation.width, operation.height, priority)

        def progress(event: TilesDone) -> None:
            self.progress(LaneProgress(index, 0, event.done, event.tiles, None, event.device_s, event.upscale_s))

        return await self.calls.upscale(request, progress)
