"""Creates the manifest (schemas/manifest.py) of an image from its job's operation and the stages' results."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from deployments.engine.types import DenoiseResult, UpscaleResult
from serve_app.images.details import DrawnDetail
from serve_app.images.moderation import SafetyOutcome
from serve_app.schemas.generation_request import LoraRequest
from serve_app.schemas.manifest import (
    CheckpointRecord,
    ControlnetRecord,
    DetailRecord,
    DetectionRecord,
    EmbeddingRecord,
    HiresRecord,
    ImageRecord,
    LoraRecord,
    Manifest,
    PartRecord,
    ReferenceRecord,
    RefinerRecord,
    RegionRecord,
    SafetyRecord,
    UpscaleManifest,
    VaeRecord,
)
from serve_app.schemas.resolved import DetailInput, Operation, ResolvedGeneration, ResolvedUpscale

# software that an image's bytes depend on
_SOFTWARE = ("darkroom", "torch", "diffusers", "transformers", "numpy")
_UPSCALING_SOFTWARE = ("darkroom", "torch", "spandrel", "pillow", "numpy")


def manifest_of(
    generation: ResolvedGeneration,
    results: Sequence[DenoiseResult],
    outcome: SafetyOutcome | None,
    enlarged: UpscaleResult | None = None,
    details: Sequence[DrawnDetail] = (),
) -> Manifest:
    """The manifest of a drawn image.

    Args:
        generation: of the job.
        results: of the denoising stages, in order; the last one decoded.
        outcome: of the safety layers; None if they are off.
        enlarged: the first pass enlarged by a model; None if it wasn't.
        details: that were drawn over, in the generation's order.
    """
    first, last = results[0], results[-1]
    image, hires, refiner = generation.image, generation.hires, None
    if generation.refiner is not None and generation.switch_at is not None:
        refiner = RefinerRecord(name=generation.refiner, hash=last.checkpoint_hash, switch_at=generation.switch_at)
    drawn_over = [part.result for detail in details for part in detail.parts]
    named = {name: digest for result in (*results, *drawn_over) for name, digest in result.inversion_hashes.items()}
    return Manifest(
        **generation.parameters() | {"seed": first.seed, "variation_seed": first.variation_seed},
        **generation.texts(),
        versions=dict(software_versions()),
        model=CheckpointRecord(name=generation.model, hash=first.checkpoint_hash),
        refiner=refiner,
        loras=_lora_records(generation.loras, first),
        embeddings=tuple(EmbeddingRecord(name=name, hash=digest) for name, digest in named.items()),
        controlnets=tuple(
            ControlnetRecord(
                name=control.model,
                hash=first.conditioning_hashes["controls"][control.model],
                **control.model_dump(exclude={"model"}),
            )
            for control in generation.controlnets
        ),
        references=tuple(
            ReferenceRecord(
                name=reference.model,
                hash=first.conditioning_hashes["references"][reference.model],
                **reference.model_dump(exclude={"model", "patches", "channels"}),
            )
            for reference in generation.references
        ),
        regions=tuple(
            RegionRecord(loras=_lora_records(region.loras, first), **region.model_dump(exclude={"loras"}))
            for region in generation.regions
        ),
        base_weight=generation.base_weight,
        vae=None
        if generation.vae is None or last.vae_hash is None
        else VaeRecord(name=generation.vae, hash=last.vae_hash),
        strength=None if image is None else image.strength,
        hires=None
        if hires is None
        else HiresRecord(
            upscaler_hash=None if enlarged is None else enlarged.upscaler_hash,
            model_hash=None if hires.model is None else last.checkpoint_hash,
            **hires.model_dump(),
        ),
        details=tuple(_detail(*of_detail) for of_detail in zip(generation.details, details, strict=True)),
        image=None if image is None else ImageRecord(**image.model_dump(exclude={"strength", "masked"})),
        device=last.device,
        dtype=last.dtype,
        reproducibility=_weakest((*results, *drawn_over)),
        safety=_safety(generation, outcome),
    )


def upscale_manifest(
    operation: ResolvedUpscale, result: UpscaleResult | None, outcome: SafetyOutcome | None
) -> UpscaleManifest:
    """The manifest of an enlarged picture; `result` of the stage, None for lanczos."""
    return UpscaleManifest(
        versions=dict(software_versions(_UPSCALING_SOFTWARE)),
        upscaler=operation.upscaler,
        hash=None if result is None else result.upscaler_hash,
        device="cpu" if result is None else result.device,
        dtype="uint8" if result is None else result.dtype,
        safety=_safety(operation, outcome),
        **operation.model_dump(include={"sha256", "source_width", "source_height", "width", "height", "parameters"}),
    )


@cache
def software_versions(names: tuple[str, ...] = _SOFTWARE) -> tuple[tuple[str, str], ...]:
    """Installed versions of the software that an image's bytes depend on; "unknown" if not installed."""
    versions = []
    for name in names:
        try:
            versions.append((name, version(name)))
        except PackageNotFoundError:  # run from a source tree that isn't installed
            versions.append((name, "unknown"))
    return tuple(versions)


def _lora_records(loras: Sequence[LoraRequest], drawn: DenoiseResult) -> tuple[LoraRecord, ...]:
    """Those that took part; one of weight 0 only where it is in place of the image's weight."""
    hashes = drawn.lora_hashes
    return tuple(LoraRecord(hash=hashes[lora.name], **lora.model_dump()) for lora in loras if lora.name in hashes)


def _detail(detail: DetailInput, drawn: DrawnDetail) -> DetailRecord:
    parts = [
        PartRecord(seed=part.result.seed, detections=tuple(DetectionRecord(**asdict(one)) for one in part.detections))
        for part in drawn.parts
    ]
    return DetailRecord(detector_hash=drawn.detector_hash, parts=tuple(parts), **detail.model_dump())


def _weakest(results: Sequence[DenoiseResult]) -> str:
    """An image is as reproducible as the least reproducible of its stages."""
    return (
        "best-effort" if any(one.reproducibility == "best-effort" for one in results) else results[-1].reproducibility
    )


def _safety(operation: Operation, outcome: SafetyOutcome | None) -> SafetyRecord:
    if outcome is None:
        return SafetyRecord(mode=operation.safety, action="none")
    return SafetyRecord(
        mode=operation.safety,
        action=outcome.action,
        flagged=outcome.flagged,
        score=outcome.score.score,
        flagged_by=outcome.score.flagged_by,
    )
