"""The pictures of ControlNets: read from requests, fitted, preprocessed for each pass.

The work takes tens of milliseconds: call it in a thread.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from deployments.engine.errors import InvalidRequest
from deployments.engine.types import MAX_CONTROLS, Control, Pixels
from serve_app.images.decode import Source, SourceImage, read_picture
from serve_app.images.inpainting import Frame
from serve_app.images.preprocessors import canny, lineart
from serve_app.images.stored_pictures import Size, kept
from serve_app.schemas.generation_request import GenerationRequest
from serve_app.schemas.resolved import ControlInput, ResolvedGeneration


def read_controls(request: GenerationRequest, source: Source | None, max_pixels: int) -> list[SourceImage]:
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
    request: GenerationRequest, generation: ResolvedGeneration, pictures: Sequence[SourceImage], size: Size
) -> list[bytes]:
    """The control pictures of a generation, in its order, as they are stored; `pictures` in the request's order."""
    by_model = {asked.model: picture for asked, picture in zip(request.controlnets, pictures, strict=True)}
    return [kept(by_model[control.model].pixels, control.fit, size) for control in generation.controlnets]


def controls_of_pass(
    generation: ResolvedGeneration, pictures: Sequence[Pixels], size: Size, frame: Frame | None
) -> tuple[Control, ...]:
    """The ControlNets of one pass.

    Args:
        generation: with the ControlNets.
        pictures: of each, as they were stored.
        size: of the pass.
        frame: the part of the picture that is drawn; None for text to image.
    """
    return tuple(
        Control(control.model, _looked_at(picture, control, size, frame), control.scale, control.start, control.end)
        for control, picture in zip(generation.controlnets, pictures, strict=True)
    )


def _looked_at(picture: Pixels, asked: ControlInput, size: Size, frame: Frame | None) -> Pixels:
    part = picture if frame is None else frame.part_of(picture)
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
