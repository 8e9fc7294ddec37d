"""Checks of prompts: of their texts, of what AND composes, and what a pass of its own reads. Pure."""

from collections.abc import Mapping, Sequence

from deployments.engine.errors import InvalidRequest
from deployments.engine.prompts.syntax import Prompt
from deployments.engine.samplers.registry import needs_guidance
from serve_app.config.settings import LimitsSettings
from serve_app.schemas.generation_request import OWN_PROMPTS, DetailRequest, HiresRequest


def check_text(field: str, text: str, limits: LimitsSettings) -> None:
    """Raise InvalidRequest, naming the field, for a text that is too long or isn't one."""
    if len(text) > limits.prompt_chars:
        raise InvalidRequest(f"{field} has {len(text)} characters, at most {limits.prompt_chars}", field)
    if "\x00" in text:
        raise InvalidRequest(f"{field} holds a NUL character", field)
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequest(f"{field} holds a lone surrogate, half of a UTF-16 character", field)


def own_prompts(
    part: HiresRequest | DetailRequest, field: str, first: Mapping[str, str], limits: LimitsSettings
) -> dict[str, str]:
    """The prompts of a pass that may have its own, by field.

    Args:
        part: of the request.
        field: where it is.
        first: prompts of the request, in place of which its own ones are.
        limits: of texts.

    Raises:
        InvalidRequest: one of its own isn't a text.
    """
    texts = dict(first)
    for name in OWN_PROMPTS:
        own = getattr(part, name)
        if own is not None:
            check_text(f"{field}.{name}", own, limits)
            texts[name] = own
            texts.pop(f"{name}_2", None)
    return texts


def check_composed(passes: Sequence[Mapping[str, Prompt]], guidance: Mapping[str, float], *, regions: bool) -> None:
    """Raise InvalidRequest for prompts that AND composes where there are regions, or no guidance to compose them by."""
    if not any(of_pass["prompt"].composed for of_pass in passes):
        return
    if regions:
        raise InvalidRequest("prompt has AND, which can't be combined with regions: leave one out", "regions")
    if guidance["guidance_scale"] <= 1:
        raise InvalidRequest(
            f"prompt has AND, which needs guidance: guidance_scale is {guidance['guidance_scale']:g}", "guidance_scale"
        )
    if (guidance["guidance_start"], guidance["guidance_end"]) != (0.0, 1.0):
        raise InvalidRequest("prompt has AND, which needs guidance at every step", "guidance_interval")


def check_guided(samplers: Sequence[str], scale: float) -> None:
    """Raise InvalidRequest for a sampler that needs the unguided output where there is no guidance."""
    for sampler in samplers:
        if scale <= 1 and needs_guidance(sampler):
            raise InvalidRequest(f"guidance_scale is {scale:g}: {sampler} needs more than 1", "guidance_scale")
