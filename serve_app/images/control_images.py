"""Prepares control pictures for ControlNets: fitted, stored beside the job, preprocessed.

They are stored at the size of the image's largest pass; each pass scales them to its own. The work takes tens of
milliseconds: call it in a thread.
"""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from deployments.engine.errors import InvalidRequest
from deployments.engine.types import MAX_CONTROLS, Pixels
from serve_app.images.decode import Source, SourceImage, read_picture
from serve_app.images.inpainting import Region
from serve_app.images.preprocessors import canny, lineart
from serve_app.schemas.generation_request import Fit, GenerationRequest
from serve_app.schemas.resolved import ControlInput, ResolvedGeneration

Size = tuple[int, int]
"""Width and height in pixels."""


def control_pictures(request: GenerationRequest, source: Source | None, max_pixels: int) -> list[SourceImage]:
    """The picture of each of a request's ControlNets: its own, or the `source` that the request begins with.

    Raises InvalidRequest for a ControlNet without either.
    """
    found = []
    for index, control in enumerate(request.controlnets[:MAX_CONTROLS]):
        field = f"controlnets.{index}.image"
        if control.image is not None:
            found.append(read_picture(field, control.image, max_pixels))
        elif source is not None:
            found.append(source.image)
        else:
            raise InvalidRequest(f"{field} is missing, and the request has no image to take instead", field)
    return found


def kept_controls(
    request: GenerationRequest, generation: ResolvedGeneration, source: Source | None, pictures: Sequence[SourceImage]
) -> list[bytes]:
    """The control pictures of a generation, in its order, as they are stored; `pictures` in the request's order."""
    by_model = {asked.model: picture for asked, picture in zip(request.controlnets, pictures, strict=True)}
    size = _kept_size(generation, None if source is None else (source.image.width, source.image.height))
    return [kept(by_model[control.model].pixels, control.fit, size) for control in generation.controlnets]


def _kept_size(generation: ResolvedGeneration, image: Size | None) -> Size:
    """The size of stored control pictures; `image`: of the picture that the generation begins with."""
    if generation.image is not None and generation.image.only_masked and image is not None:
        return image  # of which each pass draws a part
    largest = generation.hires or generation
    return largest.width, largest.height


def kept(picture: Pixels, fit: Fit, size: Size) -> bytes:
    """A picture (height, width, 3), uint8, of any size, as it is stored."""
    file = io.BytesIO()
    _fitted(Image.fromarray(picture), fit, size).save(file, "PNG", compress_level=1)
    return file.getvalue()


def read_kept(data: bytes) -> Pixels:
    """The picture that `kept` stored."""
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        return np.ascontiguousarray(np.asarray(image)[..., :3])


def looked_at(
    generation: ResolvedGeneration, pictures: Sequence[Pixels], size: Size, region: Region | None
) -> list[Pixels]:
    """The pictures of a generation's ControlNets for one pass, preprocessed.

    Args:
        generation: with the ControlNets.
        pictures: as they were stored.
        size: of the pass.
        region: the part of the picture that is drawn; None for text to image.

    Returns:
        (height, width, 3), uint8 each.
    """
    return [_looked_at(*given, size, region) for given in zip(pictures, generation.controlnets, strict=True)]


def _looked_at(picture: Pixels, asked: ControlInput, size: Size, region: Region | None) -> Pixels:
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
