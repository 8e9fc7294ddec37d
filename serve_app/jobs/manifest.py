"""The manifest of one image, from its plan and what the stages answered. What a manifest is: metadata.py."""

from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from deployments.engine.request import DenoiseResult
from serve_app.generation import ImageInput, ResolvedGeneration
from serve_app.metadata import (
    CheckpointRecord,
    ControlnetRecord,
    HiresRecord,
    ImageRecord,
    LoraRecord,
    Manifest,
    RefinerRecord,
    SafetyRecord,
)
from serve_app.safety_outcome import SafetyOutcome

# what has a say in the bytes of an image
_SOFTWARE = ("darkroom", "torch", "diffusers", "transformers", "numpy")


def manifest_of(
    generation: ResolvedGeneration, results: Sequence[DenoiseResult], outcome: SafetyOutcome | None
) -> Manifest:
    """results: of each denoising stage, in order, so that the last is the one that decoded."""
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
                hash=first.controlnet_hashes[control.model],
                **control.model_dump(exclude={"model"}),
            )
            for control in generation.controlnets
        ),
        strength=None if generation.image is None else generation.image.strength,
        hires=None if generation.hires is None else HiresRecord(**generation.hires.model_dump()),
        image=None if generation.image is None else _image_record(generation.image),
        device=last.device,
        dtype=last.dtype,
        reproducibility=_weaker(results),
        safety=_safety(generation, outcome),
    )


def _image_record(image: ImageInput) -> ImageRecord:
    """What the manifest says of the picture that a generation begins with."""
    return ImageRecord(**image.model_dump(exclude={"strength", "masked"}))


@cache
def software_versions() -> tuple[tuple[str, str], ...]:
    """Installed versions of what has a say in the bytes of an image."""
    found = []
    for name in _SOFTWARE:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:  # run from a source tree that isn't installed
            found.append((name, "unknown"))
    return tuple(found)


def _weaker(results: Sequence[DenoiseResult]) -> str:
    """An image is as reproducible as the least reproducible of its stages."""
    return next(
        (one.reproducibility for one in results if one.reproducibility == "best-effort"), results[-1].reproducibility
    )


def _safety(generation: ResolvedGeneration, outcome: SafetyOutcome | None) -> SafetyRecord:
    if outcome is None:
        return SafetyRecord(mode=generation.safety, action="none")
    return SafetyRecord(
        mode=generation.safety,
        action=outcome.action,
        flagged=outcome.flagged,
        score=outcome.score.score,
        flagged_by=outcome.score.flagged_by,
    )
