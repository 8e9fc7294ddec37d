"""A picture enlarged, as an operation of its own: what a request means, and its plan.

Pure. Errors are InvalidRequest and name the field, the value and the range.
"""

from dataclasses import dataclass
from typing import Literal

from deployments.engine.config import UpscalerSettings
from deployments.engine.errors import InvalidRequest
from deployments.engine.upscaling.tiles import tiles_of
from serve_app.config.settings import Settings
from serve_app.planning.resolve import resolve_options
from serve_app.planning.sizes import Size
from serve_app.schemas.resolved import ResolvedUpscale
from serve_app.schemas.upscale_request import LANCZOS, UpscaleRequest
from serve_app.schemas.validation import shown

# what a picture may be enlarged by in all, and by lanczos where nobody says
_MOST_TIMES, _TIMES = 8, 2

# a model that enlarges more than was asked for may produce so many times the pixels that a result may have
_MOST_BEYOND = 4

# of a model's name, by which its costs are remembered
_KIND_CHARS = 64


@dataclass(frozen=True, slots=True)
class UpscaleStage:
    """The only stage of a picture that is enlarged, in the terms of a denoising stage: a step is a tile.

    stage: "upscaler", or "lanczos", which is no stage of the service's and runs in its router. checkpoint: the model.
    steps: tiles that the picture goes through it in. width, height: of each, in pixels.
    """

    stage: Literal["upscaler", "lanczos"]
    checkpoint: str
    steps: int
    width: int
    height: int
    output: Literal["image"] = "image"
    share: float = 1.0
    rows: float = 1.0

    @property
    def sampler(self) -> str:
        """What a tile's cost depends on besides its size."""
        return self.checkpoint[:_KIND_CHARS]


@dataclass(frozen=True, slots=True)
class UpscalePlan:
    """What has to be done for a picture."""

    operation: ResolvedUpscale
    stages: tuple[UpscaleStage]


def upscaled_size(request: UpscaleRequest, source: Size, own_scale: int | None, settings: Settings) -> Size:
    """How large the result is. source: of the picture. own_scale: the model's; None for lanczos.

    Raises InvalidRequest for a result that is too large, no larger than the picture, or of another shape.
    """
    size = _requested_size(request, source, own_scale)
    restores = own_scale == 1 and size == source
    if size.width < source.width or size.height < source.height or (size == source and not restores):
        raise InvalidRequest(f"{size} of {source}: the result must be larger than the picture", _field(request))
    if size.width > _MOST_TIMES * source.width or size.height > _MOST_TIMES * source.height:
        raise InvalidRequest(f"{size} of {source}: at most {_MOST_TIMES} times", _field(request))
    most = settings.limits.max_image_pixels
    if size.width * size.height > most:
        raise InvalidRequest(
            f"the result would have {size}, {shown(size.width * size.height)} pixels: at most {most}",
            _field(request),
        )
    check_model_output(source, own_scale or 1, settings, "upscaler")
    return size


def check_model_output(source: Size, own_scale: int, settings: Settings, field: str) -> None:
    """Raise InvalidRequest, naming `field`, where a model of this scale would make too many pixels of a picture."""
    pixels, most = source.width * source.height * own_scale**2, _MOST_BEYOND * settings.limits.max_image_pixels
    if pixels > most:
        raise InvalidRequest(
            f"{field} would make {pixels} pixels of {source}: at most {most}; begin with a smaller picture, or "
            f"say {LANCZOS}",
            field,
        )


def resolve_upscale(
    request: UpscaleRequest, settings: Settings, *, source: Size, size: Size, sha256: str
) -> ResolvedUpscale:
    """With the settings' defaults and limits. size: as `upscaled_size` says. Raises InvalidRequest."""
    return ResolvedUpscale(
        sha256=sha256,
        upscaler=request.upscaler,
        source_width=source.width,
        source_height=source.height,
        width=size.width,
        height=size.height,
        **resolve_options(request, settings),
    )


def plan_upscale(operation: ResolvedUpscale, upscalers: UpscalerSettings) -> UpscalePlan:
    """Raises KeyError for a model where the settings have no folder of models any more."""
    width, height = operation.source_width, operation.source_height
    if operation.upscaler == LANCZOS:
        stage = UpscaleStage("lanczos", LANCZOS, 1, width, height)
    elif upscalers.folder is None:
        raise KeyError(operation.upscaler)
    else:
        tile = upscalers.tile
        tiles = tiles_of(height, width, tile=tile, overlap=upscalers.overlap)
        stage = UpscaleStage("upscaler", operation.upscaler, len(tiles), min(tile, width), min(tile, height))
    return UpscalePlan(operation, (stage,))


def _requested_size(request: UpscaleRequest, source: Size, own_scale: int | None) -> Size:
    width, height = request.width, request.height
    if (width, height) == (None, None):
        scale = request.scale or own_scale or _TIMES
        return Size(*(max(1, round(side * scale)) for side in source))
    if request.scale is not None:
        raise InvalidRequest("scale and a size both say how large: give one", "scale")
    if width is None:
        width = _other_side(height or 0, source.width, source.height)
    elif height is None:
        height = _other_side(width, source.height, source.width)
    size = Size(width, height or 0)
    if abs(size.width * source.height - size.height * source.width) >= max(source):
        raise InvalidRequest(f"{size} of {source} is another shape: give one of its sides", "width")
    return size


def _other_side(side: int, own: int, other: int) -> int:
    """The other side of a result, of the picture's shape; in whole numbers, for a client's may have any digits."""
    return max(1, (2 * side * own + other) // (2 * other))


def _field(request: UpscaleRequest) -> str:
    if (request.width, request.height) == (None, None):
        return "scale"
    return "height" if request.width is None else "width"
