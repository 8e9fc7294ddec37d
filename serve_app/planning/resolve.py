"""What a request means for a model: GenerationRequest -> ResolvedGeneration.

Applies the model's defaults and limits, after which nothing is left open. Pure: no clock, no randomness, no store.
Errors are InvalidRequest and name the field, the value and the range.
"""

from collections.abc import Sequence
from typing import NamedTuple

from deployments.engine.errors import InvalidRequest, UnknownCheckpoint
from deployments.engine.prompts.syntax import read_prompt
from deployments.engine.samplers.registry import canonical
from deployments.engine.types import MAX_CONTROLS
from serve_app.config.models import IntRange, ModelSettings
from serve_app.config.settings import LimitsSettings, SafetyMode, Settings
from serve_app.images.decode import Source, SourceImage
from serve_app.planning.hires import resolve_hires
from serve_app.planning.image_size import resolve_image, resolve_size
from serve_app.planning.loras import resolve_loras
from serve_app.planning.within import within
from serve_app.schemas.generation_request import (
    LATENT_UPSCALERS,
    PIXEL_UPSCALERS,
    SEEDS,
    GenerationRequest,
    GuidanceInterval,
    RefinerRequest,
    shown,
)
from serve_app.schemas.resolved_generation import ControlInput, ImageInput, ResolvedGeneration

# seeds that the service draws stay below 2**32, so that every client's numbers hold them exactly
DRAWN_SEEDS = 1 << 32

_PROMPTS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")

# weakest first: a request may only move to the right of what the settings say
_STRICTNESS: tuple[SafetyMode, ...] = ("off", "flag", "blur", "block")


def resolve(
    request: GenerationRequest,
    settings: Settings,
    *,
    drawn_seed: int,
    source: Source | None = None,
    control_pictures: Sequence[SourceImage] = (),
) -> ResolvedGeneration:
    """Apply the model's defaults and limits; `drawn_seed` serves where the request names no seed.

    source: what the request's image and mask hold, where it has an image. control_pictures: what its controlnets look
    at, one each.
    Raises InvalidRequest, UnknownCheckpoint, UnknownSampler.
    """
    name = settings.default_model if request.model is None else request.model
    model = _model(name, settings)
    limits = settings.limits
    prompts = {name: getattr(request, name) for name in _PROMPTS if getattr(request, name) is not None}
    for field, prompt in prompts.items():
        _text(field, prompt, limits)
        if field.endswith("_2") and model.family != "sdxl":
            raise InvalidRequest(
                f"{field} is for a model with two text encoders (sdxl), {name} is {model.family}", field
            )
    if request.image is None and not request.prompt.strip():
        raise InvalidRequest("prompt is empty: say what the image shows", "prompt")
    within("n", request.n, IntRange(min=1, max=limits.max_n))
    seed = drawn_seed if request.seed is None else request.seed
    if seed + request.n > SEEDS:
        raise InvalidRequest(f"seed + n must be at most 2**63: seed is {seed}, n is {request.n}", "seed")

    defaults = model.defaults
    steps = defaults.steps if request.steps is None else request.steps
    guidance = defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
    within("steps", steps, model.limits.steps)
    within("guidance_scale", guidance, model.limits.guidance_scale)
    guided = _guided(request, model, steps, guidance)
    loras = resolve_loras(request, model, prompts, steps)
    if request.clip_skip > model.limits.max_clip_skip:
        raise InvalidRequest(
            f"clip_skip is {shown(request.clip_skip)}, outside 0..{model.limits.max_clip_skip}", "clip_skip"
        )
    image = resolve_image(request, source, steps)
    size = resolve_size(request, model, source)
    sampler = defaults.sampler if request.scheduler is None else canonical(request.scheduler)
    hires = None if request.hires is None else resolve_hires(request, request.hires, model, size, steps, sampler)
    if hires is not None and hires.model is not None and settings.upscalers.folder is None:
        known = ", ".join((*LATENT_UPSCALERS, *PIXEL_UPSCALERS))
        raise InvalidRequest(f"hires.upscaler is {shown(hires.model)}; known: {known}", "hires.upscaler")
    if hires is not None:
        for field, prompt in prompts.items():
            read_prompt(prompt, hires.taken_steps, field, before=steps)
    refiner = _refiner(request, model, steps, image)
    controls = _controls(request, control_pictures)
    return ResolvedGeneration(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        prompt_2=request.prompt_2,
        negative_prompt_2=request.negative_prompt_2,
        model=name,
        n=request.n,
        seed=seed,
        steps=steps,
        guidance_scale=float(guidance),
        guidance_rescale=guided.rescale,
        guidance_start=guided.start,
        guidance_end=guided.end,
        clip_skip=request.clip_skip,
        width=size.width,
        height=size.height,
        sampler=sampler,
        refiner=refiner.model,
        switch_at=refiner.switch_at,
        output_format=request.output_format or settings.images.default_format,
        reproducible=request.reproducible,
        priority=request.priority,
        timeout_s=timeout_of(request.timeout_s, limits),
        safety=safety_of(request.safety, settings),
        preview=request.preview,
        image=image,
        hires=hires,
        loras=loras,
        controlnets=controls,
    )


class _Guided(NamedTuple):
    rescale: float
    start: float
    end: float


class _Refiner(NamedTuple):
    model: str | None
    switch_at: float | None


def _model(name: str, settings: Settings) -> ModelSettings:
    known = settings.generating()
    if name in known:
        return known[name]
    names = ", ".join(known)
    if name in settings.models:
        raise UnknownCheckpoint(f"model {name!r} only refines; models: {names}", "model")
    raise UnknownCheckpoint(f"unknown model {shown(name)}; models: {names}", "model")


def _text(field: str, text: str, limits: LimitsSettings) -> None:
    if len(text) > limits.prompt_chars:
        raise InvalidRequest(f"{field} has {len(text)} characters, at most {limits.prompt_chars}", field)
    if "\x00" in text:
        raise InvalidRequest(f"{field} holds a NUL character", field)
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequest(f"{field} holds half a character", field)


def _controls(request: GenerationRequest, pictures: Sequence[SourceImage]) -> tuple[ControlInput, ...]:
    """What steers the image. Raises InvalidRequest for ControlNets that don't go together."""
    if len(request.controlnets) > MAX_CONTROLS:
        raise InvalidRequest(f"{len(request.controlnets)} ControlNets are named, at most {MAX_CONTROLS}", "controlnets")
    if len(request.controlnets) > len(pictures):
        raise InvalidRequest("nothing can be steered by an image here", "controlnets")
    found: dict[str, ControlInput] = {}
    for index, (asked, picture) in enumerate(zip(request.controlnets, pictures, strict=True)):
        field = f"controlnets.{index}"
        if asked.model in found:
            raise InvalidRequest(f"controlnets names {shown(asked.model)} twice", f"{field}.model")
        if asked.start >= asked.end:
            raise InvalidRequest(
                f"{field} starts at {asked.start:g} and ends at {asked.end:g}: never", f"{field}.start"
            )
        if asked.low > asked.high:
            raise InvalidRequest(f"{field}.low is {asked.low}, above high ({asked.high})", f"{field}.low")
        found[asked.model] = ControlInput(sha256=picture.sha256, **asked.model_dump(exclude={"image"}))
    return tuple(control for control in found.values() if control.scale)


def _guided(request: GenerationRequest, model: ModelSettings, steps: int, guidance: float) -> _Guided:
    """How and when there is guidance. Raises InvalidRequest where there would be none."""
    rescale, interval = request.guidance_rescale, request.guidance_interval
    if guidance <= 1:
        for field, asked in (("guidance_rescale", bool(rescale)), ("guidance_interval", interval is not None)):
            if asked:
                raise InvalidRequest(f"{field} is of no use without guidance: guidance_scale is {guidance:g}", field)
        return _Guided(0.0, 0.0, 1.0)
    interval = interval or GuidanceInterval()
    if int(interval.start * steps) >= int(interval.end * steps):
        raise InvalidRequest(
            f"guidance_interval is {interval.start:g}..{interval.end:g}: none of {steps} steps lies in it",
            "guidance_interval",
        )
    return _Guided(model.defaults.guidance_rescale if rescale is None else rescale, interval.start, interval.end)


def _refiner(request: GenerationRequest, model: ModelSettings, steps: int, image: ImageInput | None) -> _Refiner:
    asked = request.refiner
    # with a picture only where it is asked for: a small strength may leave the base nothing before the switch
    begun = image is not None or request.hires is not None
    if asked is False or (asked is None and (model.refiner is None or begun)):
        return _Refiner(None, None)
    if model.refiner is None:
        raise InvalidRequest("this model has no refiner; leave refiner out, or say false", "refiner")
    if request.hires is not None:
        raise InvalidRequest("refiner and hires don't go together: say one", "refiner")
    switch_at = asked.switch_at if isinstance(asked, RefinerRequest) else None
    # a fraction too near an end would leave one of the two without a step
    skipped = 0 if image is None else steps - int(steps * image.strength)
    least, most = (skipped + 1) / steps, 1 - 1 / steps
    if image is not None and steps - skipped < 2:
        raise InvalidRequest(
            f"refiner: strength {image.strength:g} leaves {steps - skipped} of {steps} steps, too few for two models",
            "refiner",
        )
    if switch_at is None:
        switch_at = min(max(model.switch_at, least), most)
    elif not least <= switch_at <= most:
        raise InvalidRequest(
            f"refiner.switch_at is {switch_at:g}: with {steps} steps it must be in {least:.4g}..{most:.4g}, "
            "so that each model gets a step",
            "refiner.switch_at",
        )
    return _Refiner(model.refiner, switch_at)


def timeout_of(asked: float | None, limits: LimitsSettings) -> float:
    """Seconds. Raises InvalidRequest for more than the settings allow."""
    timeout_s = limits.default_timeout_s if asked is None else asked
    if timeout_s > limits.max_timeout_s:
        raise InvalidRequest(f"timeout_s is {timeout_s:g}, at most {limits.max_timeout_s:g}", "timeout_s")
    return float(timeout_s)


def safety_of(wanted: SafetyMode | None, settings: Settings) -> SafetyMode:
    """The mode of one request. Raises InvalidRequest for one that is weaker than the service's."""
    own = settings.safety.mode
    asked = own if wanted is None else wanted
    if own == "off" and asked != "off":
        raise InvalidRequest(f"safety is {asked!r}: this service checks no images (off)", "safety")
    if _STRICTNESS.index(asked) < _STRICTNESS.index(own):
        allowed = ", ".join(_STRICTNESS[_STRICTNESS.index(own) :])
        raise InvalidRequest(f"safety is {asked!r}, weaker than this service allows ({allowed})", "safety")
    return asked
