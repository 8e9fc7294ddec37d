"""The LoRAs of a generation and their weights: the model's, the request's and its prompts'. Pure."""

from collections.abc import Mapping, Sequence

from deployments.engine.errors import InvalidRequest
from deployments.engine.prompts.syntax import MAX_LORA_WEIGHT, LoraTag, Prompt
from serve_app.config.models import MAX_LORAS, ModelSettings
from serve_app.schemas.generation_request import GenerationRequest, LoraRequest
from serve_app.schemas.validation import shown


def resolve_loras(
    request: GenerationRequest, model: ModelSettings, prompts: Mapping[str, Prompt]
) -> tuple[LoraRequest, ...]:
    """The LoRAs of the model, the request and its prompts.

    A weight in `loras` comes before the prompts', then the model's.

    Args:
        request: whose `loras` are read.
        model: of the request.
        prompts: of the request, by field.

    Raises:
        InvalidRequest: a LoRA is named twice or in a negative prompt, is the model's own and left out, has too high a
            weight in all, or there are too many.
    """
    own = _once("loras", request.loras)
    named: dict[str, LoraRequest] = {}
    for field, prompt in prompts.items():
        for tag in prompt.loras:
            if field.startswith("regions"):
                continue  # its own: resolve_region_loras
            if field.startswith("negative"):
                raise InvalidRequest(f"{field} names the LoRA {shown(tag.name)}: name it in prompt or in loras", field)
            named[tag.name] = _added(named.get(tag.name), tag, field)
    loras = {lora.name: LoraRequest(name=lora.name, weight=lora.weight) for lora in model.loras} | own
    loras |= {name: lora for name, lora in named.items() if name not in own}
    field = "loras" if own else "prompt"
    for always in model.loras:
        if not any(loras[always.name].weights):  # a manifest, which has only those that took part, couldn't tell
            raise InvalidRequest(f"the LoRA {shown(always.name)} belongs to the model: its weight can't be 0", field)
    besides = len(loras) - len(model.loras)
    if besides > MAX_LORAS:
        raise InvalidRequest(f"{besides} LoRAs are named, at most {MAX_LORAS}", field)
    return tuple(loras.values())


def resolve_region_loras(
    request: GenerationRequest, of_image: Sequence[LoraRequest], prompts: Mapping[str, Prompt]
) -> list[tuple[LoraRequest, ...]]:
    """The LoRAs that each region has of its own: the request's, then those of its prompt.

    Args:
        request: whose regions' `loras` are read.
        of_image: as `resolve_loras` returns them.
        prompts: of the request, by field.

    Raises:
        InvalidRequest: a region names a LoRA twice, with too high a weight in all, or there are too many.
    """
    regions = []
    names = {lora.name for lora in of_image}
    for index, region in enumerate(request.regions):
        field = f"regions.{index}"
        own = _once(f"{field}.loras", region.loras)
        named: dict[str, LoraRequest] = {}
        for tag in prompts[f"{field}.prompt"].loras:
            named[tag.name] = _added(named.get(tag.name), tag, f"{field}.prompt")
        regions.append((*own.values(), *(lora for name, lora in named.items() if name not in own)))
        names |= own.keys() | named.keys()
        besides = len(names) - len(of_image)
        if besides > MAX_LORAS:
            raise InvalidRequest(
                f"{besides} LoRAs of regions are named besides the image's, at most {MAX_LORAS}", f"{field}.loras"
            )
    return regions


def _once(field: str, loras: Sequence[LoraRequest]) -> dict[str, LoraRequest]:
    """LoRAs by name. Raises InvalidRequest for one that is named twice."""
    own: dict[str, LoraRequest] = {}
    for index, lora in enumerate(loras):
        if lora.name in own:
            raise InvalidRequest(f"{field} names {shown(lora.name)} twice", f"{field}.{index}.name")
        own[lora.name] = lora
    return own


def _added(before: LoraRequest | None, tag: LoraTag, field: str) -> LoraRequest:
    """A LoRA at the weights of all tags that name it. Raises InvalidRequest beyond the limit."""
    weights = (0.0, 0.0) if before is None else before.weights
    unet, text = weights[0] + tag.weight, weights[1] + tag.text_weight
    if max(abs(unet), abs(text)) > MAX_LORA_WEIGHT:
        raise InvalidRequest(
            f"{field}: the LoRA {shown(tag.name)} has a weight of {max(unet, text, key=abs):g} in all, outside "
            f"{-MAX_LORA_WEIGHT:g}..{MAX_LORA_WEIGHT:g}",
            field,
        )
    return LoraRequest(name=tag.name, weight=unet, text_weight=None if text == unet else text)
