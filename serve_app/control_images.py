"""From a client's control picture to what a ControlNet looks at: fitted, kept beside the job, preprocessed.

Kept as large as the largest pass of the image is; each pass looks at it at its own size. Knows nothing of jobs or
models. The work takes tens of milliseconds: call it in a thread.
"""

import io

import numpy as np
from PIL import Image, ImageOps

from deployments.engine.request import Pixels
from serve_app.generation import ControlInput, ResolvedGeneration
from serve_app.generation_request import Fit
from serve_app.inpainting import Region
from serve_app.preprocessors import canny, lineart

Size = tuple[int, int]
"""Width and height in pixels."""


def kept_size(generation: ResolvedGeneration, image: Size | None) -> Size:
    """At which control pictures of a generation are kept. image: of the picture that it begins with."""
    if generation.image is not None and generation.image.only_masked and image is not None:
        return image  # of which each pass draws a part
    largest = generation.hires or generation
    return largest.width, largest.height


def kept(picture: Pixels, fit: Fit, size: Size) -> bytes:
    """A control picture as it is kept. picture: uint8 (height, width, 3) of any size."""
    file = io.BytesIO()
    _fitted(Image.fromarray(picture), fit, size).save(file, "PNG", compress_level=1)
    return file.getvalue()


def read_kept(data: bytes) -> Pixels:
    """What was kept."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.ascontiguousarray(np.asarray(image)[..., :3])


def looked_at(picture: Pixels, asked: ControlInput, size: Size, region: Region | None) -> Pixels:
    """What the ControlNet sees in a pass of this size: uint8 (height, width, 3).

    region: the part of the picture that is drawn, where it isn't all of it.
    """
    part = picture if region is None else region.part_of(picture)
    image = Image.fromarray(part)
    if image.size != size:
        # lines that are drawn already stay lines
        how = Image.Resampling.NEAREST if asked.preprocessor == "none" else Image.Resampling.LANCZOS
        image = image.resize(size, how)
    pixels = np.asarray(image)
    match asked.preprocessor:
        case "canny":
            return canny(pixels, asked.low, asked.high)
        case "lineart":
            return lineart(pixels)
        case "none":
            return pixels


def _fitted(image: Image.Image, fit: Fit, size: Size) -> Image.Image:
    if image.size == size:
        return image
    match fit:
        case "crop":
            return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        case "pad":
            return ImageOps.pad(image, size, Image.Resampling.LANCZOS, color=_border(image))
        case "stretch":
            return image.resize(size, Image.Resampling.LANCZOS)


def _border(image: Image.Image) -> tuple[int, int, int]:
    """The colour of most of a picture's outermost pixels."""
    pixels = np.asarray(image)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = (int(part) for part in np.median(rim, axis=0))
    return red, green, blue
