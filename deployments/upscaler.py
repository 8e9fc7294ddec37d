"""Enlarges images with models, in tiles; tiles of several images share batches.

The tiles of one batch bound the memory on the device, and `at_once` bounds it on the host. The model's output is
resized by Lanczos to the size of the request.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image
from ray import serve

from deployments.batched_stage import BatchedStage
from deployments.config import UpscalerStageSettings
from deployments.engine.checkpoints.files import hash_files
from deployments.engine.config import UpscalerSettings
from deployments.engine.types import Pixels, TilesDone, UpscaleEvent, UpscaleRequest, UpscaleResult
from deployments.engine.upscaling.folder import UpscalerFolder, UpscalerSource
from deployments.engine.upscaling.tiles import Tile, tiles_of
from deployments.metrics import UpscalerMetrics
from deployments.priority_semaphore import PrioritySemaphore
from deployments.replica import StageDescription, without_garbage_collection

# batches of one image that wait or run at a time, so that the device never waits for the next
_BATCHES_AHEAD = 2


@dataclass(frozen=True, slots=True)
class _TileInput:
    """A tile of one image, for one model; pixels are uint8 (height, width, 3)."""

    source: UpscalerSource
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class _EnlargedTile:
    """An enlarged tile, and its share of the batch's seconds on the device."""

    pixels: Pixels
    device_s: float


class Upscaler(BatchedStage):
    """The models of one folder, loaded when they are requested."""

    def __init__(self, settings: UpscalerStageSettings, upscalers: UpscalerSettings) -> None:
        with without_garbage_collection():
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
        self._enlarge_tiles.set_max_batch_size(settings.max_batch)
        self._enlarge_tiles.set_batch_wait_timeout_s(settings.batch_wait_s)

    async def upscale(self, request: UpscaleRequest) -> AsyncIterator[UpscaleEvent]:
        """Enlarge one image: TilesDone events, then one UpscaleResult.

        Closing the stream leaves out tiles that aren't in a batch yet. Raises UpscalerRefused, CheckpointError,
        NumericalFailure, OutOfDeviceMemory, EngineStopped.
        """
        source = await asyncio.to_thread(self._folder.find, request.upscaler)
        async with self._semaphore.acquire(request.priority):
            image = _padded(request.image, source.multiple)
            height, width = image.shape[:2]
            enlarged = np.empty((height * source.scale, width * source.scale, 3), np.uint8)
            tiles = tiles_of(height, width, tile=self._tile, overlap=self._overlap)
            since, done, device_s = time.monotonic(), 0, 0.0
            remaining = iter(tiles)
            tasks: set[asyncio.Task[float]] = set()
            try:
                while done < len(tiles):
                    while len(tasks) < self._ahead and (tile := next(remaining, None)) is not None:
                        tasks.add(asyncio.create_task(self._enlarge_tile(source, image, tile, enlarged)))
                    ended, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                    device_s += sum(task.result() for task in ended)
                    done += len(ended)
                    yield TilesDone(done, len(tiles), device_s, time.monotonic() - since)
            finally:
                for task in tasks:
                    task.cancel()
            rows, columns = request.image.shape[0] * source.scale, request.image.shape[1] * source.scale
            yield UpscaleResult(
                image=await asyncio.to_thread(_resized, enlarged[:rows, :columns], request.width, request.height),
                upscaler_hash=await asyncio.to_thread(hash_files, (source.file,)),
                device=self._thread.device.type,
                dtype=str(self._thread.dtype).removeprefix("torch."),
                device_s=device_s,
                upscale_s=time.monotonic() - since,
            )

    async def describe(self) -> StageDescription:
        """The replica's description, with the models in memory."""
        return replace(await super().describe(), checkpoints=self._models.names)

    async def _enlarge_tile(self, source: UpscalerSource, image: Pixels, tile: Tile, enlarged: Pixels) -> float:
        """Write a tile into `enlarged`; returns its seconds on the device."""
        pixels = image[slice(*tile.rows), slice(*tile.columns)]
        result: _EnlargedTile | Exception = await self._enlarge_tiles(_TileInput(source, pixels))
        if isinstance(result, Exception):
            raise result
        top, left = tile.rows.start * source.scale, tile.columns.start * source.scale
        rows, columns = tile.own_rows.times(source.scale), tile.own_columns.times(source.scale)
        enlarged[rows, columns] = result.pixels[
            rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ]
        return result.device_s

    @serve.batch
    async def _enlarge_tiles(self, tiles: list[_TileInput]) -> list[_EnlargedTile | Exception]:
        alike: defaultdict[tuple[UpscalerSource, tuple[int, ...]], list[int]] = defaultdict(list)
        for index, tile in enumerate(tiles):
            alike[tile.source, tile.pixels.shape].append(index)
        results: dict[int, _EnlargedTile | Exception] = {}
        for indices in alike.values():
            batch = await self._run_batch(self._enlarge, [tiles[index] for index in indices])
            self._metrics.batch(sum(isinstance(result, _EnlargedTile) for result in batch))
            results.update(zip(indices, batch, strict=True))
        return [results[index] for index in range(len(tiles))]

    def _enlarge(self, tiles: list[_TileInput]) -> list[_EnlargedTile]:
        """Enlarge tiles of one source and one size, in the device's thread."""
        since = time.monotonic()
        enlarged = self._models.enlarge(tiles[0].source, [tile.pixels for tile in tiles])
        device_s = (time.monotonic() - since) / len(tiles)
        return [_EnlargedTile(pixels, device_s) for pixels in enlarged]


def _padded(image: Pixels, multiple: int) -> Pixels:
    """Mirror the last rows and columns up to a multiple, as spandrel does; an image that is too small repeats them."""
    sides = [(0, -image.shape[0] % multiple), (0, -image.shape[1] % multiple), (0, 0)]
    if not any(more for _, more in sides):
        return image
    small = any(more >= side for side, (_, more) in zip(image.shape[:2], sides, strict=False))
    return np.pad(image, sides, mode="edge" if small else "reflect")


def _resized(image: Pixels, width: int, height: int) -> Pixels:
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
