"""A picture enlarged, as an operation of its own: what a request means, what is stored with its job, its plan.

Pure: no clock, no store, no handles. Errors are InvalidRequest and name the field, the value and the range.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from deployments.engine.config import UpscalerSettings
from deployments.engine.errors import InvalidRequest
from deployments.engine.upscaling.tiles import tiles_of
from serve_app.config.settings import OutputFormat, SafetyMode, Settings
from serve_app.planning.resolve import safety_of, timeout_of
from serve_app.schemas.generation_request import PriorityName, shown
from serve_app.schemas.upscale_request import LANCZOS, UpscaleRequest

# what a picture may be enlarged by in all, and by lanczos where nobody says
_MOST_TIMES, _TIMES = 8, 2

# a model that enlarges more than was asked for may make so many times the pixels that a result may have
_MADE_BEYOND = 4


# of a model's name, by which its costs are remembered
_KIND_CHARS = 64


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int


class ResolvedUpscale(BaseModel):
    """A request with nothing left open; stored with its job, beside which the picture is kept.

    operation: tells it from a generation, which has none. sha256: of the file as it came, hex.
    upscaler: "lanczos", or a name of the upscalers' folder. source_width, source_height: of the picture.
    width, height: of the result. safety: the stricter of the request's and the service's mode.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    operation: Literal["upscale"] = "upscale"
    sha256: str
    upscaler: str
    source_width: int
    source_height: int
    width: int
    height: int
    output_format: OutputFormat
    priority: PriorityName
    timeout_s: float
    safety: SafetyMode

    @property
    def n(self) -> int:
        """Images of the job."""
        return 1

    @property
    def prompts(self) -> tuple[str, ...]:
        """None."""
        return ()


@dataclass(frozen=True, slots=True)
class _Tiles:
    """What is worked on, in the words of a denoising stage: a step is a tile of this size.

    sampler: what a tile's cost depends on besides.
    """

    width: int
    height: int
    steps: int
    sampler: str


@dataclass(frozen=True, slots=True)
class UpscaleStage:
    """The only stage of a picture that is enlarged.

    stage: "upscaler", or "lanczos", which is no stage of the service's and runs in its router. checkpoint: the model.
    tiles: so many the picture goes through it in. tile_width, tile_height: of each, in pixels.
    """

    stage: Literal["upscaler", "lanczos"]
    checkpoint: str
    tiles: int
    tile_width: int
    tile_height: int
    output: Literal["image"] = "image"
    share: float = 1.0

    def drawn(self, _asked: ResolvedUpscale) -> _Tiles:
        """What is worked on."""
        return _Tiles(self.tile_width, self.tile_height, self.tiles, self.checkpoint[:_KIND_CHARS])

    def rows(self, _asked: ResolvedUpscale) -> float:
        """There is no guidance."""
        return 1.0


@dataclass(frozen=True, slots=True)
class UpscalePlan:
    """What has to be done for a picture."""

    asked: ResolvedUpscale
    stages: tuple[UpscaleStage]


def upscaled_size(request: UpscaleRequest, source: Size, own_scale: int | None, settings: Settings) -> Size:
    """How large the result is. source: of the picture. own_scale: the model's; None for lanczos.

    Raises InvalidRequest for a result that is too large, no larger than the picture, or of another shape.
    """
    size = _asked_size(request, source, own_scale)
    restores = own_scale == 1 and size == source
    if size.width < source.width or size.height < source.height or (size == source and not restores):
        raise InvalidRequest(
            f"{_written(size)} of {_written(source)}: the result must be larger than the picture", _field(request)
        )
    if size.width > _MOST_TIMES * source.width or size.height > _MOST_TIMES * source.height:
        raise InvalidRequest(f"{_written(size)} of {_written(source)}: at most {_MOST_TIMES} times", _field(request))
    most = settings.limits.max_image_pixels
    if size.width * size.height > most:
        raise InvalidRequest(
            f"the result would have {_written(size)}, {shown(size.width * size.height)} pixels: at most {most}",
            _field(request),
        )
    check_made(source, own_scale or 1, settings, "upscaler")
    return size


def check_made(source: Size, own_scale: int, settings: Settings, field: str) -> None:
    """Raise InvalidRequest, naming `field`, where a model of this scale would make too many pixels of a picture."""
    made, most = source.width * source.height * own_scale**2, _MADE_BEYOND * settings.limits.max_image_pixels
    if made > most:
        raise InvalidRequest(
            f"{field} would make {made} pixels of {_written(source)}: at most {most}; begin with a smaller picture, or "
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
        output_format=request.output_format or settings.images.default_format,
        priority=request.priority,
        timeout_s=timeout_of(request.timeout_s, settings.limits),
        safety=safety_of(request.safety, settings),
    )


def plan_upscale(asked: ResolvedUpscale, upscalers: UpscalerSettings) -> UpscalePlan:
    """Raises KeyError for a model where the settings have no folder of models any more."""
    width, height = asked.source_width, asked.source_height
    if asked.upscaler == LANCZOS:
        stage = UpscaleStage("lanczos", LANCZOS, 1, width, height)
    elif upscalers.folder is None:
        raise KeyError(asked.upscaler)
    else:
        tile = upscalers.tile
        tiles = tiles_of(height, width, tile=tile, overlap=upscalers.overlap)
        stage = UpscaleStage("upscaler", asked.upscaler, len(tiles), min(tile, width), min(tile, height))
    return UpscalePlan(asked, (stage,))


def _asked_size(request: UpscaleRequest, source: Size, own_scale: int | None) -> Size:
    width, height = request.width, request.height
    if (width, height) == (None, None):
        scale = request.scale or own_scale or _TIMES
        return Size(*(max(1, round(side * scale)) for side in source))
    if request.scale is not None:
        raise InvalidRequest("scale and a size both say how large: give one", "scale")
    if width is None:
        width = _following(height or 0, source.width, source.height)
    elif height is None:
        height = _following(width, source.height, source.width)
    size = Size(width, height or 0)
    if abs(size.width * source.height - size.height * source.width) >= max(source):
        raise InvalidRequest(f"{_written(size)} of {_written(source)} is another shape: give one of its sides", "width")
    return size


def _following(side: int, own: int, other: int) -> int:
    """The other side of a result, of the picture's shape; in whole numbers, for a client's may have any digits."""
    return max(1, (2 * side * own + other) // (2 * other))


def _field(request: UpscaleRequest) -> str:
    if (request.width, request.height) == (None, None):
        return "scale"
    return "height" if request.width is None else "width"


def _written(size: Size) -> str:
    return f"{shown(size.width)}x{shown(size.height)}"
