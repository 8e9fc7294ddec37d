"""Resolves and plans a request to enlarge a picture.

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

# the largest factor, and the default one for lanczos
_MOST_TIMES, _TIMES = 8, 2

# a model's own output, before it is scaled to the requested size, may have so many times the pixels of a result
_MOST_BEYOND = 4

# of a model's name, by which its costs are learned
_KIND_CHARS = 64


@dataclass(frozen=True, slots=True)
class UpscaleStage:
    """The only stage of an upscaling, with the fields of a denoising stage.

    Attributes:
        stage: "upscaler", or "lanczos", which runs in the router.
        checkpoint: the model.
        steps: tiles of the picture.
        width, height: of a tile, in pixels.
    """

    stage: Literal["upscaler", "lanczos"]
    checkpoint: str
    steps: int
    width: int
    height: int
    output: Literal["image"] = "image"
    share: float = 1.0
    expected: bool = True
    rows: float = 1.0

    @property
    def sampler(self) -> str:
        """The model, which a tile's cost depends on besides its size."""
        return self.checkpoint[:_KIND_CHARS]


@dataclass(frozen=True, slots=True)
class UpscalePlan:
    """The plan of an upscaling."""

    operation: ResolvedUpscale
    stages: tuple[UpscaleStage]


# characters of a picture's own infotext that are kept with the result
_LONGEST_INFOTEXT = 20_000


def upscaled_size(request: UpscaleRequest, source: Size, own_scale: int | None, settings: Settings) -> Size:
    """The size of the result.

    Args:
        request: of a client.
        source: the size of the picture.
        own_scale: of the model; None for lanczos.
        settings: with the limits.

    Raises:
        InvalidRequest: the result is too large, no larger than the picture, or of another shape.
    """
    size = _requested_size(request, source, own_scale)
    restores = own_scale == 1 and size == source
    if size.width < source.width or size.height < source.height or (size == source and not restores):
        raise InvalidRequest(
            f"the result would be {size}, the picture is {source}: the result must be larger", _field(request)
        )
    if size.width > _MOST_TIMES * source.width or size.height > _MOST_TIMES * source.height:
        raise InvalidRequest(
            f"the result would be {size}, the picture is {source}: at most {_MOST_TIMES} times as large",
            _field(request),
        )
    most = settings.limits.max_image_pixels
    if size.width * size.height > most:
        raise InvalidRequest(
            f"the result would have {size}, {shown(size.width * size.height)} pixels: at most {most}",
            _field(request),
        )
    check_model_output(source, own_scale or 1, settings, "upscaler")
    return size


def check_model_output(source: Size, own_scale: int, settings: Settings, field: str) -> None:
    """Raise InvalidRequest, naming `field`, if a model of this scale would produce too many pixels."""
    pixels, most = source.width * source.height * own_scale**2, _MOST_BEYOND * settings.limits.max_image_pixels
    if pixels > most:
        raise InvalidRequest(
            f"{field} would make {pixels} pixels of {source}: at most {most}; begin with a smaller picture, or "
            f"say {LANCZOS}",
            field,
        )


def resolve_upscale(
    request: UpscaleRequest, settings: Settings, *, source: Size, size: Size, sha256: str, parameters: str = ""
) -> ResolvedUpscale:
    """Complete the request with the settings' defaults.

    `size` is from `upscaled_size`, `parameters` of the picture's file. Raises InvalidRequest.
    """
    return ResolvedUpscale(
        sha256=sha256,
        upscaler=request.upscaler,
        source_width=source.width,
        source_height=source.height,
        width=size.width,
        height=size.height,
        parameters=parameters if len(parameters) <= _LONGEST_INFOTEXT else "",
        **resolve_options(request, settings),
    )


def plan_upscale(operation: ResolvedUpscale, upscalers: UpscalerSettings) -> UpscalePlan:
    """The plan of an upscaling. Raises KeyError for a model if the settings no longer have a folder of them."""
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
        raise InvalidRequest("scale and width or height are set: leave one out", "scale")
    if width is None:
        width = _other_side(height or 0, source.width, source.height)
    elif height is None:
        height = _other_side(width, source.height, source.width)
    size = Size(width, height or 0)
    if abs(size.width * source.height - size.height * source.width) >= max(source):
        raise InvalidRequest(
            f"the result would be {size}, another shape than the picture's {source}: set only one of its sides", "width"
        )
    return size


def _other_side(side: int, own: int, other: int) -> int:
    """The other side of a result in the picture's shape; in integers, as a client's may be of any size."""
    return max(1, (2 * side * own + other) // (2 * other))


def _field(request: UpscaleRequest) -> str:
    if (request.width, request.height) == (None, None):
        return "scale"
    return "height" if request.width is None else "width"
