"""What a request does with the picture that it begins with, and how large its images are. Pure."""

from typing import NamedTuple

from deployments.engine.errors import InvalidRequest
from serve_app.config.models import SIZE_STEP, ModelSettings
from serve_app.images.decode import Source
from serve_app.planning.within import within
from serve_app.schemas.generation_request import GenerationRequest, InpaintRequest
from serve_app.schemas.resolved_generation import ImageInput


class ImageSize(NamedTuple):
    """In pixels."""

    width: int
    height: int


def resolve_image(request: GenerationRequest, source: Source | None, steps: int) -> ImageInput | None:
    """What is done with the request's picture. Raises InvalidRequest for parts of it that don't go together."""
    inpaint, outpaint = request.inpaint, request.outpaint
    if source is None:
        if request.image is not None:
            raise InvalidRequest("nothing can begin with an image here", "image")
        for field in ("mask", "strength", "inpaint", "outpaint"):
            if getattr(request, field) is not None:
                raise InvalidRequest(f"{field} is of no use without an image", field)
        return None
    masked = source.mask is not None or outpaint is not None
    if inpaint is not None and not masked:
        raise InvalidRequest("inpaint is of no use without a mask", "inpaint")
    settings = inpaint or InpaintRequest()
    if outpaint is not None:
        if not any(outpaint.by):
            raise InvalidRequest("outpaint extends the image by nothing: say left, top, right or bottom", "outpaint")
        if settings.only_masked:
            raise InvalidRequest("inpaint.only_masked and outpaint don't go together", "inpaint.only_masked")
        if (request.width, request.height) != (None, None):
            field = "height" if request.width is None else "width"
            raise InvalidRequest(f"{field} follows from the image and outpaint: leave it out", field)
    strength = request.strength
    if strength is None:
        strength = 1.0 if masked else 0.8
    if int(steps * strength) == 0:
        raise InvalidRequest(f"strength is {strength:g}: it leaves none of {steps} steps", "strength")
    return ImageInput(
        sha256=source.image.sha256,
        mask_sha256=None if source.mask is None else source.mask.sha256,
        masked=masked,
        strength=strength,
        blur=settings.blur,
        invert=settings.invert,
        only_masked=settings.only_masked,
        padding=settings.padding,
        outpaint=None if outpaint is None else outpaint.by,
    )


def resolve_size(request: GenerationRequest, model: ModelSettings, source: Source | None) -> ImageSize:
    """The request's own size, or the picture's, or the model's. Raises InvalidRequest for one the model can't draw."""
    limits, hint = model.limits, ""
    width, height = model.defaults.width, model.defaults.height
    if source is not None and request.outpaint is not None:
        left, top, right, bottom = request.outpaint.by
        width, height = source.image.width + left + right, source.image.height + top + bottom
        for side, value in (("width", width), ("height", height)):
            if value % SIZE_STEP:
                raise InvalidRequest(
                    f"outpaint makes a {side} of {value}, no multiple of {SIZE_STEP}: "
                    f"extend it by {-value % SIZE_STEP} more",
                    "outpaint",
                )
    elif source is not None and not (request.inpaint and request.inpaint.only_masked):
        width, height = (side - side % SIZE_STEP for side in (source.image.width, source.image.height))
        hint = " (the image's own; with width and height it is scaled)"
    size = ImageSize(
        width if request.width is None else request.width, height if request.height is None else request.height
    )
    for field, value, allowed in (("width", size.width, limits.width), ("height", size.height, limits.height)):
        within(field, value, allowed, hint)
        if value % SIZE_STEP:
            raise InvalidRequest(f"{field} is {value}, no multiple of {SIZE_STEP} ({allowed})", field)
    if limits.max_pixels is not None and size.width * size.height > limits.max_pixels:
        raise InvalidRequest(
            f"width * height is {size.width * size.height}, at most {limits.max_pixels} for this model{hint}", "width"
        )
    return size
