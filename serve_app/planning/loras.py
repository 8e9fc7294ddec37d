"""The LoRAs of a generation and their weights: the model's, the request's and its prompts'. Pure."""

from collections.abc import Mapping

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
        InvalidRequest: a LoRA is named twice, in a negative prompt or in a region's, is the model's own and left out,
            has too high a weight in all, or there are too many.
    """
    own: dict[str, LoraRequest] = {}
    for index, lora in enumerate(request.loras):
        if lora.name in own:
            raise InvalidRequest(f"loras names {shown(lora.name)} twice", f"loras.{index}.name")
        own[lora.name] = lora
    named: dict[str, LoraRequest] = {}
    for field, prompt in prompts.items():
        for tag in prompt.loras:
            if field.startswith(("negative", "regions")):
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
