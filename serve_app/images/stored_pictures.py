"""Pictures that are stored beside a job: written at a size that every pass can be scaled from, and read back."""

import io

import numpy as np
from PIL import Image, ImageOps

from deployments.engine.types import Pixels
from serve_app.schemas.generation_request import Fit
from serve_app.schemas.resolved import ResolvedGeneration

Size = tuple[int, int]
"""Width and height in pixels."""


def stored_size(generation: ResolvedGeneration, image: Size | None) -> Size:
    """The size of stored pictures of the result's shape; `image`: of the picture that the generation begins with."""
    begun = generation.image
    if begun is not None and image is not None and (begun.only_masked or begun.fit == "latent"):
        return image  # of which each pass draws a part
    largest = generation.hires or generation
    return largest.width, largest.height


def kept(picture: Pixels, fit: Fit = "stretch", size: Size | None = None) -> bytes:
    """A picture (height, width, 3) or a mask (height, width), uint8, as it is stored; without `size` in its own."""
    file = io.BytesIO()
    image = Image.fromarray(picture)
    (image if size is None else _fitted(image, fit, size)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def read_kept(data: bytes) -> Pixels:
    """The picture or mask that `kept` stored."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        pixels = np.asarray(image)
        return np.ascontiguousarray(pixels if pixels.ndim == 2 else pixels[..., :3])


def _fitted(image: Image.Image, fit: Fit, size: Size) -> Image.Image:
    if image.size == size:
        return image
    match fit:
        case "crop":
            return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        case "pad":
            return ImageOps.pad(image, size, Image.Resampling.LANCZOS, color=_border(image))
        case "stretch":
            # a mask stays black and white
            return image.resize(size, Image.Resampling.NEAREST if image.mode == "L" else Image.Resampling.LANCZOS)


def _border(image: Image.Image) -> tuple[int, int, int]:
    """The colour of most of a picture's outermost pixels."""
    pixels = np.asarray(image)
    rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = (int(part) for part in np.median(rim, axis=0))
    return red, green, blue
