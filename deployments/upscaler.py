"""Enlarges pictures with models: each goes through in tiles, and tiles of several pictures share batches.

Memory is bounded by the tiles of one batch on the device, and beside it by how many pictures are at work. How large the
result is to be is the request's: what the model makes is brought there by Lanczos. Knows nothing of jobs or HTTP.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from ray import serve

from deployments.batched_stage import BatchedStage
from deployments.config import UpscalerStageSettings
from deployments.denoising_stage import StageDescription
from deployments.engine.checkpoints.files import hash_files
from deployments.engine.config import UpscalerSettings
from deployments.engine.types import Pixels, TilesDone, UpscaleEvent, UpscaleRequest, UpscaleResult
from deployments.engine.upscaling.folder import UpscalerFolder, UpscalerSource
from deployments.engine.upscaling.tiles import Tile, tiles_of
from deployments.metrics import UpscalerMetrics
from deployments.priority_semaphore import PrioritySemaphore
from deployments.uncollected import uncollected

logger = logging.getLogger("ray.serve")

# batches of one picture that wait or run at a time: enough that the device never waits for the next
_BATCHES_AHEAD = 2


@dataclass(frozen=True, slots=True)
class _Part:
    """What goes into a batch: pixels of one picture, for one model."""

    source: UpscalerSource
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class _Enlarged:
    """device_s: of the batch, this part's share."""

    pixels: Pixels
    device_s: float


class Upscaler(BatchedStage):
    """The models of one folder, loaded when they are asked for."""

    def __init__(self, settings: UpscalerStageSettings, upscalers: UpscalerSettings) -> None:
        with uncollected():
            from deployments.engine.upscaling.upscaler import ResidentUpscalers

        super().__init__(settings.device)
        self._folder = UpscalerFolder(upscalers.folder)
        self._models = self._thread.submit(
            ResidentUpscalers, upscalers.resident_mib, self._thread.device, self._thread.dtype
        ).result()
        self._tile, self._overlap = upscalers.tile, upscalers.overlap
        self._semaphore = PrioritySemaphore(settings.at_once)
        self._ahead = _BATCHES_AHEAD * settings.max_batch
        self._metrics = UpscalerMetrics()
        self._enlarge_parts.set_max_batch_size(settings.max_batch)
        self._enlarge_parts.set_batch_wait_timeout_s(settings.batch_wait_s)

    async def upscale(self, request: UpscaleRequest) -> AsyncIterator[UpscaleEvent]:
        """Enlarge one picture: TilesDone events, then one UpscaleResult.

        Raises UpscalerRefused, CheckpointError, NumericalFailure, OutOfDeviceMemory, EngineStopped. When the stream is
        closed, tiles that aren't in a batch yet are left out.
        """
        source = await asyncio.to_thread(self._folder.find, request.upscaler)
        async with self._semaphore.acquire(request.priority):
            picture = _padded(request.image, source.multiple)
            height, width = picture.shape[:2]
            made = np.empty((height * source.scale, width * source.scale, 3), np.uint8)
            tiles = tiles_of(height, width, tile=self._tile, overlap=self._overlap)
            since, done, device_s = time.monotonic(), 0, 0.0
            left = iter(tiles)
            under_way: set[asyncio.Task[float]] = set()
            try:
                while done < len(tiles):
                    while len(under_way) < self._ahead and (tile := next(left, None)) is not None:
                        under_way.add(asyncio.create_task(self._put(source, picture, tile, made)))
                    ended, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                    device_s += sum(one.result() for one in ended)
                    done += len(ended)
                    yield TilesDone(done, len(tiles), device_s, time.monotonic() - since)
            finally:
                for one in under_way:
                    one.cancel()
            exact = request.image.shape[0] * source.scale, request.image.shape[1] * source.scale
            yield UpscaleResult(
                image=await asyncio.to_thread(_sized, made[: exact[0], : exact[1]], request.width, request.height),
                upscaler_hash=await asyncio.to_thread(hash_files, (source.file,)),
                device=self._thread.device.type,
                dtype=str(self._thread.dtype).removeprefix("torch."),
                device_s=device_s,
                upscale_s=time.monotonic() - since,
            )

    async def describe(self) -> StageDescription:
        """As every batched stage, with the models that are in memory now."""
        return replace(await super().describe(), checkpoints=self._models.names)

    async def _put(self, source: UpscalerSource, picture: Pixels, tile: Tile, made: Pixels) -> float:
        """Enlarge a tile into its place; the answer is what it cost of the device."""
        seen = picture[slice(*tile.rows), slice(*tile.columns)]
        result: _Enlarged | Exception = await self._enlarge_parts(_Part(source, seen))
        if isinstance(result, Exception):
            raise result
        top, left = tile.rows.start * source.scale, tile.columns.start * source.scale
        rows, columns = tile.own_rows.times(source.scale), tile.own_columns.times(source.scale)
        made[rows, columns] = result.pixels[
            rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]
        return result.device_s

    @serve.batch
    async def _enlarge_parts(self, parts: list[_Part]) -> list[_Enlarged | Exception]:
        """One result a part. Failures are values here: a raised one would fail every part of the batch."""
        alike: defaultdict[tuple[UpscalerSource, tuple[int, ...]], list[int]] = defaultdict(list)
        for index, part in enumerate(parts):
            alike[part.source, part.pixels.shape].append(index)
        results: list[_Enlarged | Exception] = [RuntimeError("not enlarged")] * len(parts)
        for (source, _), indices in alike.items():
            made = await self._enlarge_together(source, [parts[index].pixels for index in indices])
            for index, one in zip(indices, made, strict=True):
                results[index] = one
        return results

    async def _enlarge_together(self, source: UpscalerSource, pictures: list[Pixels]) -> list[_Enlarged | Exception]:
        since = time.monotonic()
        try:
            enlarged = await self._thread.run(self._models.enlarge, source, pictures)
        except Exception as error:
            if len(pictures) == 1:
                return [error]
            logger.warning("A batch of %d tiles failed (%s); each is tried alone", len(pictures), error)
        else:
            self._metrics.batch(len(pictures))
            share = (time.monotonic() - since) / len(pictures)
            return [_Enlarged(pixels, share) for pixels in enlarged]
        return [(await self._enlarge_together(source, [picture]))[0] for picture in pictures]


def _padded(picture: Pixels, multiple: int) -> Pixels:
    """With its last rows and columns mirrored up to a multiple, as spandrel does it; a line alone is repeated."""
    sides = [(0, -picture.shape[0] % multiple), (0, -picture.shape[1] % multiple), (0, 0)]
    if not any(more for _, more in sides):
        return picture
    small = any(more >= side for side, (_, more) in zip(picture.shape[:2], sides, strict=False))
    return np.pad(picture, sides, mode="edge" if small else "reflect")


def _sized(picture: Pixels, width: int, height: int) -> Pixels:
    if picture.shape[:2] == (height, width):
        return np.ascontiguousarray(picture)
    return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
