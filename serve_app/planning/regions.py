"""The regions of a generation: parts of its image with prompts of their own. Pure."""

from collections.abc import Sequence

from deployments.engine.errors import InvalidRequest
from deployments.engine.types import LATENT_SCALE, MAX_REGIONS
from serve_app.images.decode import SourceImage
from serve_app.planning.sizes import Size
from serve_app.schemas.generation_request import BoxRequest, GenerationRequest, LoraRequest
from serve_app.schemas.resolved import RegionInput

# of the prompt where regions are: what sd-webui-regional-prompter takes as its base's ratio
_BASE_WEIGHT = 0.2

# how far sums of decimal fractions may be above 1
_ROUNDING = 1e-6


def region_prompts(request: GenerationRequest) -> dict[str, str]:
    """The regions' prompts by field. Raises InvalidRequest for too many, and for an empty one."""
    if len(request.regions) > MAX_REGIONS:
        raise InvalidRequest(f"{len(request.regions)} regions are sent, at most {MAX_REGIONS}", "regions")
    prompts = {f"regions.{index}.prompt": region.prompt for index, region in enumerate(request.regions)}
    for field, prompt in prompts.items():
        if not prompt.strip():
            raise InvalidRequest(f"{field} is empty: say what the region shows", field)
    return prompts


def resolve_regions(
    request: GenerationRequest,
    size: Size,
    masks: Sequence[SourceImage | None],
    loras: Sequence[tuple[LoraRequest, ...]],
) -> tuple[RegionInput, ...]:
    """The regions of the image.

    Args:
        request: of a client.
        size: of the image, of its first pass if there are two.
        masks: of the regions; None for one without.
        loras: of each region's own.

    Raises:
        InvalidRequest: a region has not exactly one of box and mask, or is outside of the image, or too small.
    """
    regions = []
    for index, region in enumerate(request.regions):
        field = f"regions.{index}"
        if (region.box is None) == (region.mask is None):
            count = "neither box nor mask: one of them says" if region.box is None else "box and mask: only one may say"
            raise InvalidRequest(f"{field} has {count} where it is", field if region.box is None else f"{field}.mask")
        if region.box is not None:
            _check_box(f"{field}.box", region.box, size)
        mask = masks[index] if index < len(masks) else None
        if mask is None and region.mask is not None:
            raise InvalidRequest(f"{field}.mask isn't supported here: use a box", f"{field}.mask")
        own = region.model_dump(exclude={"mask", "loras"})
        sha256 = None if mask is None else mask.sha256
        regions.append(RegionInput(mask_sha256=sha256, loras=loras[index], **own))
    return tuple(regions)


def base_weight_of(request: GenerationRequest) -> float:
    """The weight of the prompt where regions are; 0 without regions. Raises InvalidRequest if it has no effect."""
    if not request.regions:
        if request.base_weight is not None:
            raise InvalidRequest("base_weight has no effect without regions", "base_weight")
        return 0.0
    return _BASE_WEIGHT if request.base_weight is None else request.base_weight


def _check_box(field: str, box: BoxRequest, size: Size) -> None:
    sides = (("x", "width", box.x, box.width, size.width), ("y", "height", box.y, box.height, size.height))
    for start_name, length_name, start, length, pixels in sides:
        if start + length > 1 + _ROUNDING:
            raise InvalidRequest(
                f"{field} goes beyond the image: {start_name} + {length_name} is {start + length:g}, at most 1", field
            )
        if length * pixels < LATENT_SCALE:
            raise InvalidRequest(
                f"{field}.{length_name} is {length:g}: {length * pixels:.3g} of {pixels} pixels, at least "
                f"{LATENT_SCALE}",
                f"{field}.{length_name}",
            )
