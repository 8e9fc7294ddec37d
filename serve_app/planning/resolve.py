"""Completes a request with its model's defaults, and checks it against the limits.

Pure: no clock, no randomness, no store. Errors are InvalidRequest and name the field, the value and the range.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

from deployments.engine.errors import InvalidRequest, UnknownCheckpoint
from deployments.engine.families.registry import FAMILIES
from deployments.engine.parameters import DenoisingParameters, SamplerOptions
from deployments.engine.prompts.syntax import Prompt, read_prompt
from deployments.engine.samplers.registry import (
    WEBUI_SAMPLERS,
    canonical,
    options_of,
    taken_steps,
)
from deployments.engine.types import MAX_CONTROLS, MAX_REFERENCES
from serve_app.config.models import SIZE_STEP, IntRange, ModelSettings
from serve_app.config.settings import SafetyMode, Settings
from serve_app.images.decode import Source, SourceImage
from serve_app.images.reference_images import ReferenceSource
from serve_app.images.steering import NO_STEERING, SteeringSources
from serve_app.planning.details import Inherited, resolve_details
from serve_app.planning.loras import resolve_loras, resolve_region_loras
from serve_app.planning.prompts import check_composed, check_guided, check_text, own_prompts
from serve_app.planning.regions import base_weight_of, region_prompts, resolve_regions
from serve_app.planning.sizes import resolve_hires, resolve_image, resolve_size, within
from serve_app.schemas.generation_request import (
    LATENT_UPSCALERS,
    OWN_PROMPTS,
    PIXEL_UPSCALERS,
    PROMPTS,
    SEEDS,
    GenerationRequest,
    GuidanceInterval,
    HiresRequest,
    JobOptions,
    RefinerRequest,
)
from serve_app.schemas.resolved import ControlInput, HiresInput, PromptTexts, ReferenceInput, ResolvedGeneration
from serve_app.schemas.validation import shown

# seeds that the service draws stay below 2**32, so that every client's numbers hold them exactly
DRAWN_SEEDS = 1 << 32

# weakest first: a request may only be stricter than the settings
_STRICTNESS: tuple[SafetyMode, ...] = ("off", "flag", "blur", "block")


class Resolution(NamedTuple):
    """A resolved request.

    Attributes:
        generation: to draw.
        shown_texts: for the prompt filter: the prompts as written, and as each pass reads them without their syntax;
            the names of LoRAs.
    """

    generation: ResolvedGeneration
    shown_texts: tuple[str, ...]


def resolve(
    request: GenerationRequest,
    settings: Settings,
    *,
    drawn_seed: int,
    source: Source | None = None,
    steering: SteeringSources = NO_STEERING,
    blank_prompt: bool = False,
) -> Resolution:
    """Apply the model's defaults and limits.

    Args:
        request: of a client.
        settings: with the models that the client may use.
        drawn_seed: the seed if the request names none.
        source: the request's decoded image and mask, if it has an image.
        steering: the decoded pictures of its controlnets, references and regions.
        blank_prompt: whether the prompt may be empty without an image, too.

    Raises:
        InvalidRequest, UnknownCheckpoint, UnknownSampler: the field that the error names can't be drawn so.
    """
    name = settings.default_model if request.model is None else request.model
    model = _model(name, settings)
    limits, defaults = settings.limits, model.defaults
    prompts = {field: getattr(request, field) for field in PROMPTS if getattr(request, field) is not None}
    of_regions = region_prompts(request)
    prompts |= of_regions
    for field, prompt in prompts.items():
        check_text(field, prompt, limits)
        if field.endswith("_2") and len(FAMILIES[model.family].text_encoders) == 1:
            raise InvalidRequest(
                f"{field} is for a model with two text encoders, {name} ({model.family}) has one", field
            )
    if request.image is None and not request.prompt.strip() and not blank_prompt:
        raise InvalidRequest("prompt is empty: say what the image shows", "prompt")
    within("n", request.n, IntRange(min=1, max=limits.max_n))
    seed = drawn_seed if request.seed is None else request.seed
    if seed + request.n > SEEDS:
        raise InvalidRequest(f"seed + n must be at most 2**63: seed is {seed}, n is {request.n}", "seed")
    steps = defaults.steps if request.steps is None else request.steps
    within("steps", steps, model.limits.steps)
    guidance = _guidance(request, model, steps)
    if request.clip_skip > model.limits.max_clip_skip:
        raise InvalidRequest(
            f"clip_skip is {shown(request.clip_skip)}, outside 0..{model.limits.max_clip_skip}", "clip_skip"
        )
    sampler = defaults.sampler if request.scheduler is None else canonical(request.scheduler)
    image = resolve_image(request, source, steps, sampler)
    taken = steps if image is None else taken_steps(sampler, steps, image.strength)
    passes = [{field: read_prompt(prompt, taken, field) for field, prompt in prompts.items()}]
    loras = resolve_loras(request, model, passes[0])
    of_regions_own = resolve_region_loras(request, loras, passes[0])
    size = resolve_size(request, model, source)
    hires = None
    if request.hires is not None:
        second_model = _second_model(request, request.hires, name, settings, guidance["guidance_scale"])
        of_model = model if second_model is None else second_model
        hires = resolve_hires(request, request.hires, of_model, size, steps, sampler)
        if hires.upscaler_model is not None and settings.upscalers.folder is None:
            known = ", ".join((*LATENT_UPSCALERS, *PIXEL_UPSCALERS))
            raise InvalidRequest(f"hires.upscaler is {shown(hires.upscaler_model)}; known: {known}", "hires.upscaler")
        of_second = own_prompts(request.hires, "hires", prompts, limits)
        second = hires.taken_steps
        passes.append({field: read_prompt(text, second, field, before=steps) for field, text in of_second.items()})
        if second_model is not None:
            hires = _with_own_model(request, request.hires, hires, second_model, passes[1])
            hires = hires.model_copy(update={"model": _meant(hires.model or name, settings)})
        elif request.hires.prompt is not None:
            hires = hires.model_copy(update={"loras": resolve_loras(request, model, passes[1])})
    check_composed(passes, guidance, regions=bool(of_regions))
    details = resolve_details(request, model, settings, Inherited(prompts, steps, sampler, guidance))
    refiner, switch_at = _refiner(request, model, steps, taken)
    own = (*(() if hires is None else (hires,)), *details.inputs)
    samplers = (sampler, *(one.sampler for one in own))
    parameters = DenoisingParameters(
        seed=seed,
        steps=steps,
        width=size.width,
        height=size.height,
        sampler=sampler,
        tiling=request.tiling,
        **_freeu(request),
        **{**guidance, **_sampler_options(request, samplers), **_noise(request, model)},
    )
    check_guided((sampler,) if hires is None else (sampler, hires.sampler), guidance["guidance_scale"])
    generation = ResolvedGeneration(
        **{field: getattr(request, field) for field in PromptTexts.model_fields},
        **resolve_options(request, settings),
        **parameters.parameters(),
        model=_meant(name, settings),
        pinned=_pinned((name, None if request.hires is None else request.hires.model), settings),
        n=request.n,
        refiner=refiner,
        switch_at=switch_at,
        reproducible=request.reproducible,
        preview=request.preview,
        image=image,
        hires=hires,
        loras=loras,
        controlnets=_controls(request, steering.controls),
        references=_references(request, steering.references),
        regions=resolve_regions(request, size, steering.regions, of_regions_own),
        base_weight=base_weight_of(request),
        vae=request.vae,
        details=details.inputs,
    )
    shown_texts: list[str] = []
    for field in ("prompt", "prompt_2", *of_regions):
        if field in prompts:
            shown_texts += [prompts[field], *(text for one in passes for text in one[field].plain_texts)]
    if hires is not None:
        shown_texts += [hires.prompt] if hires.prompt else []
        loras = (*loras, *(lora for lora in hires.loras or () if lora not in loras))
    shown_texts += details.shown_texts
    loras = (*loras, *(lora for own in of_regions_own for lora in own if lora not in loras))
    loras = (*loras, *(lora for one in details.inputs for lora in one.loras or () if lora not in loras))
    return Resolution(generation, (*dict.fromkeys(shown_texts), *dict.fromkeys(lora.name for lora in loras)))


def resolve_options(options: JobOptions, settings: Settings) -> dict[str, Any]:
    """The fields of a ResolvedJob. Raises InvalidRequest."""
    timeout_s, longest = options.timeout_s, settings.limits.max_timeout_s
    if timeout_s is None:
        timeout_s = settings.limits.default_timeout_s
    if timeout_s > longest:
        raise InvalidRequest(f"timeout_s is {timeout_s:g}, at most {longest:g}", "timeout_s")
    return {
        "output_format": options.output_format or settings.images.default_format,
        "priority": options.priority,
        "timeout_s": float(timeout_s),
        "safety": _safety(options.safety, settings.safety.mode),
    }


def _model(name: str, settings: Settings, field: str = "model") -> ModelSettings:
    known = settings.generating()
    if name in known:
        return known[name]
    names = ", ".join(known)
    if name in settings.models:
        raise UnknownCheckpoint(f"{field} {name!r} only refines; models: {names}", field)
    raise UnknownCheckpoint(f"unknown {field} {shown(name)}; models: {names}", field)


def _meant(name: str, settings: Settings) -> str:
    """The model that a name is of, itself or by an alias."""
    alias = settings.aliases.get(name)
    return name if alias is None else alias.model


def _pinned(names: Iterable[str | None], settings: Settings) -> dict[str, str]:
    """The hashes that the aliases among these names ask for, by the model that each means."""
    aliases = [settings.aliases.get(name or "") for name in names]
    return {alias.model: alias.sha256 for alias in aliases if alias is not None and alias.sha256 is not None}


def _second_model(
    request: GenerationRequest, hires: HiresRequest, first: str, settings: Settings, guidance_scale: float
) -> ModelSettings | None:
    """The second pass's model, None for that of the first; `first` is its name.

    Raises:
        InvalidRequest: what the request says of both passes is outside of the second model's limits, or can't be of two
            families.
        UnknownCheckpoint: there is no such model.
    """
    if hires.model in (None, first):
        return None
    model, of_first = _model(hires.model, settings, "hires.model"), settings.models[first]
    within("guidance_scale", guidance_scale, model.limits.guidance_scale, f" (of hires.model {hires.model})")
    if request.clip_skip > model.limits.max_clip_skip:
        raise InvalidRequest(
            f"clip_skip is {shown(request.clip_skip)}, outside 0..{model.limits.max_clip_skip} of hires.model "
            f"{hires.model}",
            "clip_skip",
        )
    if model.family == of_first.family:
        return model
    families = f"{first} is of family {of_first.family}, {hires.model} of {model.family}"
    if hires.upscaler in LATENT_UPSCALERS:
        raise InvalidRequest(
            f"hires.upscaler is {hires.upscaler}: {families}, whose latents differ; use lanczos or an upscaler's model",
            "hires.upscaler",
        )
    for field in ("controlnets", "references"):
        if getattr(request, field):
            raise InvalidRequest(f"{field} steer both passes: {families}", field)
    if request.vae is not None:
        raise InvalidRequest(f"vae is of both passes: {families}", "vae")
    return model


def _with_own_model(
    request: GenerationRequest,
    asked: HiresRequest,
    hires: HiresInput,
    model: ModelSettings,
    prompts: Mapping[str, Prompt],
) -> HiresInput:
    """A second pass by another model, whose LoRAs are its own and those of its prompts. Raises InvalidRequest."""
    update: dict[str, Any] = {"model": asked.model}
    update["loras"] = resolve_loras(request.model_copy(update={"loras": []}), model, prompts)
    if len(FAMILIES[model.family].text_encoders) == 1:  # the first pass's texts for a second encoder mean nothing to it
        for field in OWN_PROMPTS:
            if getattr(request, f"{field}_2") is not None and getattr(asked, field) is None:
                update[field] = getattr(request, field)
    return hires.model_copy(update=update)


def _controls(request: GenerationRequest, pictures: Sequence[SourceImage]) -> tuple[ControlInput, ...]:
    """The ControlNets that steer the image. Raises InvalidRequest for those that don't go together."""
    if len(request.controlnets) > MAX_CONTROLS:
        raise InvalidRequest(f"{len(request.controlnets)} ControlNets are named, at most {MAX_CONTROLS}", "controlnets")
    if len(request.controlnets) > len(pictures):
        raise InvalidRequest("controlnets aren't supported here", "controlnets")
    controls = []
    for index, (control, picture) in enumerate(zip(request.controlnets, pictures, strict=True)):
        field = f"controlnets.{index}"
        if control.start >= control.end:
            raise InvalidRequest(
                f"{field}.start is {control.start:g}, not below end ({control.end:g})", f"{field}.start"
            )
        if control.low > control.high:
            raise InvalidRequest(f"{field}.low is {control.low}, above high ({control.high})", f"{field}.low")
        controls.append(ControlInput(sha256=picture.sha256, **control.model_dump(exclude={"image"})))
    return tuple(control for control in controls if control.scale)


def _references(request: GenerationRequest, sources: Sequence[ReferenceSource]) -> tuple[ReferenceInput, ...]:
    """The reference pictures of the image. Raises InvalidRequest for those that can't be shown so."""
    if len(request.references) > MAX_REFERENCES:
        raise InvalidRequest(f"{len(request.references)} references are sent, at most {MAX_REFERENCES}", "references")
    if len(request.references) > len(sources):
        raise InvalidRequest("references aren't supported here", "references")
    inputs = []
    for index, (reference, source) in enumerate(zip(request.references, sources, strict=True)):
        field = f"references.{index}"
        if reference.start >= reference.end:
            raise InvalidRequest(
                f"{field}.start is {reference.start:g}, not below end ({reference.end:g})", f"{field}.start"
            )
        if reference.scale:
            inputs.append(
                ReferenceInput(
                    sha256=source.picture.sha256,
                    mask_sha256=None if source.mask is None else source.mask.sha256,
                    patches=source.adapter.sees_patches,
                    channels=source.adapter.features,
                    **reference.model_dump(exclude={"image", "mask"}),
                )
            )
    return tuple(inputs)


def _guidance(request: GenerationRequest, model: ModelSettings, steps: int) -> dict[str, float]:
    """The parameters of guidance. Raises InvalidRequest for some that would have no effect."""
    defaults = model.defaults
    scale = defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
    within("guidance_scale", scale, model.limits.guidance_scale)
    rescale, interval = request.guidance_rescale, request.guidance_interval
    if scale <= 1:
        for field, wanted in (("guidance_rescale", bool(rescale)), ("guidance_interval", interval is not None)):
            if wanted:
                raise InvalidRequest(f"{field} has no effect without guidance: guidance_scale is {scale:g}", field)
        return {"guidance_scale": float(scale)}
    interval = interval or GuidanceInterval()
    if int(interval.start * steps) >= int(interval.end * steps):
        raise InvalidRequest(
            f"guidance_interval is {interval.start:g}..{interval.end:g}: none of {steps} steps lies in it",
            "guidance_interval",
        )
    return {
        "guidance_scale": float(scale),
        "guidance_rescale": defaults.guidance_rescale if rescale is None else rescale,
        "guidance_start": interval.start,
        "guidance_end": interval.end,
    }


def _freeu(request: GenerationRequest) -> dict[str, Any]:
    """FreeU's parameters."""
    return {} if request.freeu is None else {f"freeu_{name}": value for name, value in request.freeu}


def _sampler_options(request: GenerationRequest, samplers: Sequence[str]) -> dict[str, float]:
    """The numbers that the request gives to its samplers. Raises InvalidRequest for one that none of them has."""
    neutral = {option.name: option.default for option in fields(SamplerOptions)}
    given = {name: getattr(request, name) for name in neutral}
    given = {name: value for name, value in given.items() if value not in (None, neutral[name])}
    for name in given:
        if not any(name in options_of(sampler) for sampler in samplers):
            having = ", ".join(sampler for sampler, known in WEBUI_SAMPLERS.items() if name in known.options)
            raise InvalidRequest(f"{name} is of no use with {samplers[0]}; these have it: {having}", name)
    return {name: float(value) for name, value in given.items()}


def _noise(request: GenerationRequest, model: ModelSettings) -> dict[str, Any]:
    """The parameters of the first noise. Raises InvalidRequest for some that would have no effect."""
    given: dict[str, Any] = {}
    if request.noise_seed_delta:
        given["noise_seed_delta"] = request.noise_seed_delta
    seed, strength = request.variation_seed, request.variation_strength
    if (seed is None) != (not strength) and not (seed is not None and strength == 0):
        field, other = (
            ("variation_strength", "variation_seed") if seed is None else ("variation_seed", "variation_strength")
        )
        raise InvalidRequest(f"{field} has no effect without {other}: set both, or leave it out", field)
    if seed is not None and strength:
        if seed + request.n > SEEDS:
            raise InvalidRequest(
                f"variation_seed + n must be at most 2**63: variation_seed is {seed}", "variation_seed"
            )
        given |= {"variation_seed": seed, "variation_strength": float(strength)}
    sides = {"noise_width": model.limits.width, "noise_height": model.limits.height}
    for field, allowed in sides.items():
        value = getattr(request, field)
        if value is None:
            continue
        if None in (request.noise_width, request.noise_height):
            raise InvalidRequest("noise_width and noise_height go together: set both, or none", field)
        within(field, value, IntRange(min=SIZE_STEP, max=allowed.max))
        if value % SIZE_STEP:
            raise InvalidRequest(f"{field} is {value}, no multiple of {SIZE_STEP}", field)
        given[field] = value
    return given


def _refiner(
    request: GenerationRequest, model: ModelSettings, steps: int, taken: int
) -> tuple[str | None, float | None]:
    """The refining model and the fraction at which it takes over. Raises InvalidRequest.

    taken: of the steps, what runs.
    """
    refiner = request.refiner
    # with a picture only where the request says so: a small strength may leave the base nothing before the switch
    begun = request.image is not None or request.hires is not None
    if refiner is False or (refiner is None and (model.refiner is None or begun)):
        return None, None
    if model.refiner is None:
        raise InvalidRequest("this model has no refiner: leave refiner out, or set it to false", "refiner")
    if request.hires is not None:
        raise InvalidRequest("refiner and hires can't be combined: leave one out", "refiner")
    switch_at = refiner.switch_at if isinstance(refiner, RefinerRequest) else None
    # a fraction too near an end would leave one of the two without a step
    least, most = (steps - taken + 1) / steps, 1 - 1 / steps
    if request.image is not None and taken < 2:
        raise InvalidRequest(
            f"refiner: the strength leaves {taken} of {steps} steps, too few for two models",
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
    return model.refiner, switch_at


def _safety(wanted: SafetyMode | None, least: SafetyMode) -> SafetyMode:
    """The mode of one request. Raises InvalidRequest if it is weaker than `least`, the service's."""
    mode = least if wanted is None else wanted
    if least == "off" and mode != "off":
        raise InvalidRequest(f"safety is {mode!r}: this service doesn't check images (its mode is off)", "safety")
    if _STRICTNESS.index(mode) < _STRICTNESS.index(least):
        allowed = ", ".join(_STRICTNESS[_STRICTNESS.index(least) :])
        raise InvalidRequest(f"safety is {mode!r}, weaker than this service allows ({allowed})", "safety")
    return mode
