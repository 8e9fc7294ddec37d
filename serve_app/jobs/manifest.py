"""The manifest of one image, from what was asked for and what the stages answered. What a manifest is: metadata.py."""

from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from deployments.engine.types import DenoiseResult, UpscaleResult
from serve_app.images.encode import (
    CheckpointRecord,
    ControlnetRecord,
    HiresRecord,
    ImageRecord,
    LoraRecord,
    Manifest,
    RefinerRecord,
    SafetyRecord,
    UpscaleManifest,
)
from serve_app.images.moderation import SafetyOutcome
from serve_app.planning.operations import Operation
from serve_app.planning.upscale import ResolvedUpscale
from serve_app.schemas.resolved_generation import HiresInput, ImageInput, ResolvedGeneration

# what has a say in the bytes of an image
_SOFTWARE = ("darkroom", "torch", "diffusers", "transformers", "numpy")
_UPSCALING_SOFTWARE = ("darkroom", "torch", "spandrel", "pillow", "numpy")


def manifest_of(
    generation: ResolvedGeneration,
    results: Sequence[DenoiseResult],
    outcome: SafetyOutcome | None,
    enlarged: UpscaleResult | None = None,
) -> Manifest:
    """results: of each denoising stage, in order, so that the last is the one that decoded. enlarged: what a model made
    of the first pass.
    """
    first, last = results[0], results[-1]
    refiner: RefinerRecord | None = None
    if generation.refiner is not None and generation.switch_at is not None:
        refiner = RefinerRecord(name=last.checkpoint, hash=last.checkpoint_hash, switch_at=generation.switch_at)
    return Manifest(
        versions=dict(software_versions()),
        model=CheckpointRecord(name=first.checkpoint, hash=first.checkpoint_hash),
        refiner=refiner,
        prompt=generation.prompt,
        negative_prompt=generation.negative_prompt,
        prompt_2=generation.prompt_2,
        negative_prompt_2=generation.negative_prompt_2,
        seed=first.seed,
        steps=generation.steps,
        guidance_scale=generation.guidance_scale,
        guidance_rescale=generation.guidance_rescale,
        guidance_start=generation.guidance_start,
        guidance_end=generation.guidance_end,
        width=generation.width,
        height=generation.height,
        sampler=generation.sampler,
        clip_skip=generation.clip_skip,
        loras=tuple(
            LoraRecord(name=lora.name, weight=lora.weight, hash=first.lora_hashes[lora.name])
            for lora in generation.loras
            if lora.name in first.lora_hashes
        ),
        controlnets=tuple(
            ControlnetRecord(
                name=control.model,
                hash=first.conditioning_hashes["controls"][control.model],
                **control.model_dump(exclude={"model"}),
            )
            for control in generation.controlnets
        ),
        strength=None if generation.image is None else generation.image.strength,
        hires=None if generation.hires is None else _hires_record(generation.hires, enlarged),
        image=None if generation.image is None else _image_record(generation.image),
        device=last.device,
        dtype=last.dtype,
        reproducibility=weaker(results),
        safety=_safety(generation, outcome),
    )


def _hires_record(hires: HiresInput, enlarged: UpscaleResult | None) -> HiresRecord:
    return HiresRecord(upscaler_hash=None if enlarged is None else enlarged.upscaler_hash, **hires.model_dump())


def _image_record(image: ImageInput) -> ImageRecord:
    """What the manifest says of the picture that a generation begins with."""
    return ImageRecord(**image.model_dump(exclude={"strength", "masked"}))


def upscale_manifest(
    asked: ResolvedUpscale, made: UpscaleResult | None, outcome: SafetyOutcome | None
) -> UpscaleManifest:
    """made: by the stage; None of lanczos."""
    return UpscaleManifest(
        versions=dict(software_versions(_UPSCALING_SOFTWARE)),
        upscaler=asked.upscaler,
        hash=None if made is None else made.upscaler_hash,
        device="cpu" if made is None else made.device,
        dtype="uint8" if made is None else made.dtype,
        safety=_safety(asked, outcome),
        **asked.model_dump(include={"sha256", "source_width", "source_height", "width", "height"}),
    )


@cache
def software_versions(names: tuple[str, ...] = _SOFTWARE) -> tuple[tuple[str, str], ...]:
    """Installed versions of what has a say in the bytes of an image; "unknown" of what isn't installed."""
    found = []
    for name in names:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:  # run from a source tree that isn't installed
            found.append((name, "unknown"))
    return tuple(found)


def weaker(results: Sequence[DenoiseResult]) -> str:
    """An image is as reproducible as the least reproducible of its stages."""
    return next(
        (one.reproducibility for one in results if one.reproducibility == "best-effort"), results[-1].reproducibility
    )


def _safety(generation: Operation, outcome: SafetyOutcome | None) -> SafetyRecord:
    if outcome is None:
        return SafetyRecord(mode=generation.safety, action="none")
    return SafetyRecord(
        mode=generation.safety,
        action=outcome.action,
        flagged=outcome.flagged,
        score=outcome.score.score,
        flagged_by=outcome.score.flagged_by,
    )
