"""The size of a request's images, and its use of the picture that it begins with. Pure."""

from typing import NamedTuple

from deployments.engine.errors import InvalidRequest, UnknownSampler
from deployments.engine.samplers.registry import canonical, second_pass_schedule, taken_steps
from serve_app.config.models import SIZE_STEP, FloatRange, IntRange, ModelLimits, ModelSettings
from serve_app.images.decode import Source
from serve_app.schemas.generation_request import GenerationRequest, HiresRequest, InpaintRequest
from serve_app.schemas.resolved import HiresInput, ImageInput
from serve_app.schemas.validation import shown

# the steps that SD's and SDXL's schedules were trained on
_LONGEST_SCHEDULE = 1_000


class Size(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{shown(self.width)}x{shown(self.height)}"


def within(field: str, value: float, allowed: IntRange | FloatRange, hint: str = "") -> None:
    """Raise InvalidRequest, with the `hint`, unless the value is in `allowed`."""
    if value not in allowed:
        raise InvalidRequest(f"{field} is {shown(value)}, outside {allowed}{hint}", field)


def resolve_image(request: GenerationRequest, source: Source | None, steps: int, sampler: str) -> ImageInput | None:
    """The use of the request's picture. Raises InvalidRequest for fields that don't go together."""
    inpaint, outpaint = request.inpaint, request.outpaint
    if source is None:
        if request.image is not None:
            raise InvalidRequest("image isn't supported here", "image")
        for field in ("mask", "strength", "fit", "inpaint", "outpaint"):
            if getattr(request, field) is not None:
                raise InvalidRequest(f"{field} has no effect without an image: leave it out", field)
        return None
    masked = source.mask is not None or outpaint is not None
    if inpaint is not None and not masked:
        raise InvalidRequest("inpaint has no effect without a mask: leave it out", "inpaint")
    settings = inpaint or InpaintRequest()
    if outpaint is not None:
        if not any(outpaint.by):
            raise InvalidRequest("outpaint extends the image by 0 pixels: set left, top, right or bottom", "outpaint")
        if settings.only_masked:
            raise InvalidRequest(
                "inpaint.only_masked and outpaint can't be combined: leave one out", "inpaint.only_masked"
            )
        if (request.width, request.height) != (None, None):
            field = "height" if request.width is None else "width"
            raise InvalidRequest(f"{field} follows from the image and outpaint: leave it out", field)
    fit = request.fit or "stretch"
    if fit != "stretch" and (outpaint is not None or settings.only_masked or (masked and fit == "latent")):
        raise InvalidRequest(
            f"fit is {fit}: it has no effect with outpaint or inpaint.only_masked, and latent none with a mask", "fit"
        )
    strength = request.strength
    if strength is None:
        strength = 1.0 if masked else 0.8
    if taken_steps(sampler, steps, strength) == 0:
        raise InvalidRequest(f"strength is {strength:g}: it leaves none of {steps} steps", "strength")
    return ImageInput(
        sha256=source.image.sha256,
        mask_sha256=None if source.mask is None else source.mask.sha256,
        masked=masked,
        fit=fit,
        strength=strength,
        **settings.model_dump(),
        outpaint=None if outpaint is None else outpaint.by,
    )


def resolve_size(request: GenerationRequest, model: ModelSettings, source: Source | None) -> Size:
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
    size = Size(width if request.width is None else request.width, height if request.height is None else request.height)
    check_size(size, limits, hint=hint)
    return size


def check_size(size: Size, limits: ModelLimits, *, of: str = "", hint: str = "") -> None:
    """Raise InvalidRequest, with the `hint`, for a size that a model can't draw; `of`: what its fields begin with."""
    for name, value, allowed in (("width", size.width, limits.width), ("height", size.height, limits.height)):
        field = f"{of}{name}"
        within(field, value, allowed, hint)
        if value % SIZE_STEP:
            raise InvalidRequest(f"{field} is {value}, no multiple of {SIZE_STEP} ({allowed})", field)
    pixels = size.width * size.height
    if limits.max_pixels is not None and pixels > limits.max_pixels:
        raise InvalidRequest(
            f"{of}width * height is {pixels}, at most {limits.max_pixels} for this model{hint}", f"{of}width"
        )


def resolve_hires(
    request: GenerationRequest, hires: HiresRequest, model: ModelSettings, first: Size, steps: int, sampler: str
) -> HiresInput:
    """The second pass over images of size `first`. Raises InvalidRequest."""
    if request.image is not None:
        raise InvalidRequest("hires can't be combined with an image: set width and height instead", "hires")
    size = _hires_size(hires, first)
    if size.width < first.width or size.height < first.height or size == first:
        raise InvalidRequest(f"hires is {size}, the first pass {first}: the second pass must be larger", "hires")
    limits = model.limits
    if limits.max_hires_pixels is None:
        for field, value, allowed in (("width", size.width, limits.width), ("height", size.height, limits.height)):
            within(f"hires.{field}", value, allowed)
    most = limits.max_hires_pixels or limits.max_pixels
    if most is not None and size.width * size.height > most:
        raise InvalidRequest(
            f"hires is {size}, {size.width * size.height} pixels, at most {most} for this model",
            "hires",
        )
    taken = steps if hires.steps is None else hires.steps
    within("hires.steps", taken, IntRange(min=1, max=limits.steps.max))
    second = sampler if hires.sampler is None else sampler_in("hires.sampler", hires.sampler)
    needed = taken / hires.strength
    if needed > _LONGEST_SCHEDULE:
        raise InvalidRequest(
            f"hires.strength is {hires.strength:g}: its {taken} steps would need a schedule of {needed:.6g}, "
            f"at most {_LONGEST_SCHEDULE}",
            "hires.strength",
        )
    return HiresInput(
        prompt=hires.prompt,
        negative_prompt=hires.negative_prompt,
        width=size.width,
        height=size.height,
        upscaler=hires.upscaler,
        strength=hires.strength,
        steps=second_pass_schedule(second, taken, hires.strength),
        sampler=second,
    )


def _hires_size(hires: HiresRequest, first: Size) -> Size:
    if (hires.width, hires.height) == (None, None):
        scale = 2.0 if hires.scale is None else hires.scale
        return Size(*(int(side * scale) // SIZE_STEP * SIZE_STEP for side in first))
    if hires.scale is not None:
        raise InvalidRequest("hires.scale and hires.width or height are set: leave one out", "hires.scale")
    width, height = hires.width, hires.height
    for field, value in (("hires.width", width), ("hires.height", height)):
        if value is not None and value % SIZE_STEP:
            raise InvalidRequest(f"{field} is {shown(value)}, no multiple of {SIZE_STEP}", field)
    if width is None:
        width = (height or 0) * first.width // first.height // SIZE_STEP * SIZE_STEP
    elif height is None:
        height = width * first.height // first.width // SIZE_STEP * SIZE_STEP
    return Size(width, height or 0)


def sampler_in(field: str, name: str) -> str:
    """The canonical name of a sampler that a field names. Raises UnknownSampler."""
    try:
        return canonical(name)
    except UnknownSampler as error:
        raise UnknownSampler(error.message, field) from None
