"""The details of a generation: parts of its finished image that are found and drawn over. Pure."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from deployments.engine.errors import InvalidRequest
from deployments.engine.prompts.syntax import Prompt, read_prompt
from deployments.engine.samplers.registry import taken_steps
from serve_app.config.models import ModelSettings
from serve_app.config.settings import Settings
from serve_app.planning.loras import resolve_loras
from serve_app.planning.prompts import check_composed, check_guided, own_prompts
from serve_app.planning.sizes import Size, check_size, sampler_in, within
from serve_app.schemas.generation_request import (
    MAX_DETAILS,
    OWN_PROMPTS,
    DetailRequest,
    DetailSettings,
    GenerationRequest,
)
from serve_app.schemas.resolved import DetailInput


@dataclass(frozen=True, slots=True)
class Inherited:
    """What details take over from the image unless they say it themselves.

    Attributes:
        prompts: by field.
        guidance: parameters of guidance.
    """

    prompts: Mapping[str, str]
    steps: int
    sampler: str
    guidance: Mapping[str, float]


class Details(NamedTuple):
    """The resolved details, and their own texts for the prompt filter."""

    inputs: tuple[DetailInput, ...] = ()
    shown_texts: tuple[str, ...] = ()


def resolve_details(request: GenerationRequest, model: ModelSettings, settings: Settings, image: Inherited) -> Details:
    """The details of a request.

    Args:
        request: of a client.
        model: that draws the image, and them.
        settings: with the limits.
        image: what they take over.

    Raises:
        InvalidRequest, UnknownSampler: the field that the error names can't be drawn so.
    """
    if not request.details:
        return Details()
    if settings.detectors.folder is None:
        raise InvalidRequest(
            "details aren't supported here: the service has no detectors (detectors.folder)", "details"
        )
    if len(request.details) > MAX_DETAILS:
        raise InvalidRequest(f"{len(request.details)} details are sent, at most {MAX_DETAILS}", "details")
    if request.mask is not None or request.outpaint is not None:
        raise InvalidRequest("details can't be combined with a mask or outpaint: leave one out", "details")
    inputs, texts = list[DetailInput](), list[str]()
    for index, detail in enumerate(request.details):
        resolved, shown = _resolved(f"details.{index}", detail, request, model, settings, image)
        inputs.append(resolved)
        texts += shown
    return Details(tuple(inputs), tuple(texts))


def _resolved(
    field: str,
    detail: DetailRequest,
    request: GenerationRequest,
    model: ModelSettings,
    settings: Settings,
    image: Inherited,
) -> tuple[DetailInput, list[str]]:
    """One of them, and its own texts for the prompt filter."""
    defaults, limits = model.defaults, model.limits
    if detail.min_area > detail.max_area:
        raise InvalidRequest(
            f"{field}.min_area is {detail.min_area:g}, above max_area ({detail.max_area:g})", f"{field}.min_area"
        )
    width = defaults.width if detail.width is None else detail.width
    height = defaults.height if detail.height is None else detail.height
    check_size(Size(width, height), limits, of=f"{field}.")
    steps = image.steps
    if detail.steps is not None:
        steps = detail.steps
        within(f"{field}.steps", steps, limits.steps)
    scale = image.guidance["guidance_scale"]
    if detail.guidance_scale is not None:
        scale = float(detail.guidance_scale)
        within(f"{field}.guidance_scale", scale, limits.guidance_scale)
    sampler = image.sampler if detail.sampler is None else sampler_in(f"{field}.sampler", detail.sampler)
    taken = taken_steps(sampler, steps, detail.strength)
    if taken == 0:
        raise InvalidRequest(
            f"{field}.strength is {detail.strength:g}: it leaves none of {steps} steps", f"{field}.strength"
        )
    texts = own_prompts(detail, field, image.prompts, settings.limits)
    texts = {name: text for name, text in texts.items() if not name.startswith("regions")}
    guidance = {"guidance_start": 0.0, "guidance_end": 1.0, **image.guidance, "guidance_scale": scale}
    with _errors_in(field):
        check_guided((sampler,), scale)
        prompts = {name: read_prompt(text, taken, name) for name, text in texts.items()}
        check_composed([prompts], guidance, regions=False)
        loras = None if detail.prompt is None else resolve_loras(request, model, prompts)
    resolved = DetailInput(
        **detail.model_dump(include=set(DetailSettings.model_fields)),
        prompt=detail.prompt,
        negative_prompt=detail.negative_prompt,
        loras=loras,
        steps=steps,
        guidance_scale=scale,
        sampler=sampler,
        width=width,
        height=height,
    )
    return resolved, _shown(detail, prompts)


@contextmanager
def _errors_in(field: str) -> Iterator[None]:
    """Refusals within the block are of the detail's own fields."""
    try:
        yield
    except InvalidRequest as error:
        raise type(error)(f"{field}: {error.message}", f"{field}.{error.field}") from None


def _shown(detail: DetailRequest, prompts: Mapping[str, Prompt]) -> list[str]:
    """A prompt of its own, as written and as it is read."""
    return [] if detail.prompt is None else [detail.prompt, *prompts[OWN_PROMPTS[0]].plain_texts]
