"""The masks of regions: read from requests, drawn from boxes, brought to each pass.

The work takes tens of milliseconds: call it in a thread.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from deployments.engine.errors import InvalidRequest
from deployments.engine.types import LATENT_SCALE, MASKED, MAX_REGIONS, Pixels, Region
from serve_app.images.decode import SourceImage, read_mask
from serve_app.images.inpainting import Frame
from serve_app.images.stored_pictures import Size, kept, read_kept
from serve_app.schemas.generation_request import BoxRequest, GenerationRequest
from serve_app.schemas.resolved import ResolvedGeneration


def read_regions(request: GenerationRequest, max_pixels: int) -> list[SourceImage | None]:
    """The mask of each of a request's regions; None for one without. Raises InvalidRequest."""
    return [
        None if region.mask is None else read_mask(f"regions.{index}.mask", region.mask, max_pixels)
        for index, region in enumerate(request.regions[:MAX_REGIONS])
    ]


def kept_regions(masks: Sequence[SourceImage | None], size: Size) -> list[bytes]:
    """The masks of regions as they are stored, at `size`. Raises InvalidRequest for one that covers no latent cell."""
    files = []
    for index, mask in enumerate(masks):
        if mask is not None:
            file = kept(mask.pixels, "stretch", size)
            cells = np.asarray(Image.fromarray(read_kept(file)).reduce(LATENT_SCALE))
            if not (cells >= MASKED).any():
                field = f"regions.{index}.mask"
                raise InvalidRequest(f"{field} has no white area, or a too small one: the region is nowhere", field)
            files.append(file)
    return files


def regions_of_pass(
    generation: ResolvedGeneration, masks: Sequence[Pixels | None], size: Size, frame: Frame | None
) -> tuple[Region, ...]:
    """The regions of one pass; arguments as of `controls_of_pass`, `masks` None for a region with a box."""
    canvas = size if frame is None else frame.canvas_size
    regions = []
    for region, stored in zip(generation.regions, masks, strict=True):
        mask = _drawn(region.box, canvas) if region.box is not None else stored
        if mask is not None:  # resolve.py sees to it that each has one
            part = Image.fromarray(mask if frame is None else frame.part_of(mask))
            regions.append(Region(np.asarray(part.resize(size, Image.Resampling.BOX)), region.weight))
    return tuple(regions)


def _drawn(box: BoxRequest, size: Size) -> Pixels:
    """A mask (height, width), uint8, of a box; a pixel that it covers in part is grey."""
    columns, rows = _covered(box.x, box.width, size[0]), _covered(box.y, box.height, size[1])
    return np.rint(255 * rows[:, None] * columns).astype(np.uint8)


def _covered(start: float, length: float, pixels: int) -> npt.NDArray[np.float64]:
    """How much of each of a line's pixels lies in a part of it; `start` and `length` in lines."""
    edges = np.clip(np.arange(pixels + 1, dtype=np.float64), start * pixels, (start + length) * pixels)
    return np.diff(edges)
