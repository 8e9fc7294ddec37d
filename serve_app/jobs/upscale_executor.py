"""Enlarges the picture of a job: by Lanczos here, or by the stage's models, and then as every image of a job ends.

A picture that was half enlarged when its router died begins anew: it takes seconds. Knows the plan, the stage and the
image store; knows nothing of the job store. It can be cancelled anywhere.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from deployments.engine.types import Pixels, TilesDone, UpscaleRequest, UpscaleResult
from deployments.priority_semaphore import PrioritySemaphore
from serve_app.image_store.store import ImageStore
from serve_app.images.control_images import read_kept
from serve_app.jobs.generation_executor import DrawnImage, LaneProgress
from serve_app.jobs.image_finisher import ImageFinisher
from serve_app.jobs.manifest import upscale_manifest
from serve_app.planning.plan import PRIORITIES
from serve_app.planning.upscale import UpscalePlan
from serve_app.stages.client import StageCalls
from serve_app.stages.stage_input import scaled

# pictures to be enlarged that a router holds at a time: each may have some 50 MB, and as much when it is larger
PICTURES_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class UpscaleExecutor:
    """How the picture of one attempt at a job is enlarged.

    semaphore: for holding a picture in memory. progress: called for each batch of its tiles.
    """

    calls: StageCalls
    images: ImageStore
    plan: UpscalePlan
    finisher: ImageFinisher
    semaphore: PrioritySemaphore
    progress: Callable[[LaneProgress], None]

    async def draw(self, index: int) -> DrawnImage:
        """The job's only image. Raises DarkroomError."""
        async with self.semaphore.acquire(PRIORITIES[self.plan.asked.priority]):
            return await self._draw(index)

    async def _draw(self, index: int) -> DrawnImage:
        data = await self.images.read_input(self.finisher.job_id)
        picture = await asyncio.to_thread(read_kept, data)
        since = time.monotonic()
        if self.plan.stages[0].stage == "lanczos":
            enlarged, made = await self._by_lanczos(index, picture), None
        else:
            made = await self._by_model(index, picture)
            enlarged = made.image
        upscale_s = time.monotonic() - since
        ended = await self.finisher.finish(
            index,
            enlarged,
            lambda outcome: upscale_manifest(self.plan.asked, made, outcome),
            reproducibility="best-effort",
        )
        return DrawnImage(
            record=ended.record,
            shown=ended.shown,
            queued_s=0.0,
            denoise_s=0.0,
            decode_s=0.0,
            device_s=0.0 if made is None else made.device_s,
            classify_s=ended.classify_s,
            store_s=ended.store_s,
            upscale_s=upscale_s,
        )

    async def _by_lanczos(self, index: int, picture: Pixels) -> Pixels:
        asked = self.plan.asked
        enlarged = await asyncio.to_thread(scaled, picture, "lanczos", asked.width, asked.height)
        self.progress(LaneProgress(index, 0, 1, 1, None))
        return enlarged

    async def _by_model(self, index: int, picture: Pixels) -> UpscaleResult:
        asked = self.plan.asked
        request = UpscaleRequest(asked.upscaler, picture, asked.width, asked.height, PRIORITIES[asked.priority])

        def progress(event: TilesDone) -> None:
            self.progress(LaneProgress(index, 0, event.done, event.tiles, None, event.device_s, event.upscale_s))

        return await self.calls.upscale(request, progress)
