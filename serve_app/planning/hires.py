"""What a request's second pass means for a model: a larger size, and part of a longer schedule. Pure."""

import math

from deployments.engine.errors import InvalidRequest, UnknownSampler
from deployments.engine.samplers.registry import canonical
from serve_app.config.models import SIZE_STEP, ModelSettings
from serve_app.planning.image_size import ImageSize
from serve_app.planning.within import within
from serve_app.schemas.generation_request import GenerationRequest, HiresRequest, shown
from serve_app.schemas.resolved_generation import HiresInput

# the steps that SD's and SDXL's schedules were trained on
_LONGEST_SCHEDULE = 1_000


def resolve_hires(
    request: GenerationRequest, asked: HiresRequest, model: ModelSettings, first: ImageSize, steps: int, sampler: str
) -> HiresInput:
    """The second pass over images of size `first`. Raises InvalidRequest."""
    if request.image is not None:
        raise InvalidRequest("hires is for what begins with text; with an image say width and height", "hires")
    size = _hires_size(asked, first)
    if size.width < first.width or size.height < first.height or size == first:
        raise InvalidRequest(
            f"hires makes {size.width}x{size.height} of {first.width}x{first.height}: it must be larger", "hires"
        )
    limits = model.limits
    if limits.max_hires_pixels is None:
        for field, value, allowed in (("width", size.width, limits.width), ("height", size.height, limits.height)):
            within(f"hires.{field}", value, allowed)
    most = limits.max_hires_pixels or limits.max_pixels
    if most is not None and size.width * size.height > most:
        raise InvalidRequest(
            f"hires makes {size.width}x{size.height}, {size.width * size.height} pixels: at most {most} for this model",
            "hires",
        )
    taken = steps if asked.steps is None else asked.steps
    within("hires.steps", taken, limits.steps)
    needed = taken / asked.strength
    if needed > _LONGEST_SCHEDULE:
        raise InvalidRequest(
            f"hires.strength is {asked.strength:g}: {taken} steps would be part of {needed:.6g}, "
            f"at most {_LONGEST_SCHEDULE}",
            "hires.strength",
        )
    whole = math.ceil(needed)
    whole += int(whole * asked.strength) < taken  # what rounding took
    return HiresInput(
        width=size.width,
        height=size.height,
        upscaler=asked.upscaler,
        strength=asked.strength,
        steps=whole,
        sampler=sampler if asked.sampler is None else _hires_sampler(asked.sampler),
    )


def _hires_size(asked: HiresRequest, first: ImageSize) -> ImageSize:
    if (asked.width, asked.height) == (None, None):
        scale = 2.0 if asked.scale is None else asked.scale
        return ImageSize(*(int(side * scale) // SIZE_STEP * SIZE_STEP for side in first))
    if asked.scale is not None:
        raise InvalidRequest("hires.scale and a size both say how large: give one", "hires.scale")
    width, height = asked.width, asked.height
    for field, value in (("hires.width", width), ("hires.height", height)):
        if value is not None and value % SIZE_STEP:
            raise InvalidRequest(f"{field} is {shown(value)}, no multiple of {SIZE_STEP}", field)
    if width is None:
        width = (height or 0) * first.width // first.height // SIZE_STEP * SIZE_STEP
    elif height is None:
        height = width * first.height // first.width // SIZE_STEP * SIZE_STEP
    size = ImageSize(width, height or 0)
    if abs(size.width * first.height - size.height * first.width) >= SIZE_STEP * max(first):
        raise InvalidRequest(
            f"hires makes {shown(size.width)}x{shown(size.height)} of {first.width}x{first.height}, "
            "another shape: give one of its sides",
            "hires.width",
        )
    return size


def _hires_sampler(name: str) -> str:
    try:
        return canonical(name)
    except UnknownSampler as error:
        raise UnknownSampler(error.message, "hires.sampler") from None
