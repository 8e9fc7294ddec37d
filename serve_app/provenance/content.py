"""What an image's Content Credentials say, as a manifest definition of the C2PA library."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from serve_app.schemas.digital_source_type import source_type_of
from serve_app.schemas.manifest import Manifest, UpscaleManifest

GENERATION = "darkroom.generation"
"""Label of the assertion that names the job and the models."""

INSTANCE = "urn:sha256:"
"""What the instance of an ingredient begins with; the SHA-256 of its file follows."""

SOFTWARE = {"name": "Darkroom", "version": version("darkroom")}


def ingredient_label(index: int) -> str:
    """By which actions name the ingredient of this index."""
    return f"ingredient_{index}"


def definition_of(
    manifest: Manifest | UpscaleManifest, *, job_id: str, content_type: str, ingredients: int, prompt: bool
) -> dict[str, Any]:
    """The definition of the credentials of a job's image.

    Args:
        manifest: of the image.
        job_id: that drew it.
        content_type: of the file.
        ingredients: number of pictures that the request brought; the first is the one that the image began with, if it
            began with one.
        prompt: whether the prompt is said.
    """
    began = isinstance(manifest, UpscaleManifest) or manifest.image is not None
    generation = {"job": job_id, **generation_of(manifest, prompt)}
    return definition(content_type, source_type_of(manifest), generation, began=began, ingredients=ingredients)


def definition(
    content_type: str, source_type: str, generation: Mapping[str, Any], *, began: bool, ingredients: int
) -> dict[str, Any]:
    """The definition of an image's credentials.

    Args:
        content_type: of the file.
        source_type: IPTC's URI.
        generation: what the assertion GENERATION says.
        began: whether the image begins with another one.
        ingredients: as in `definition_of`.
    """
    labels = [ingredient_label(index) for index in range(ingredients)]
    opened = labels[:1] if began else []
    used = labels[len(opened) :]
    action: dict[str, Any] = {
        "action": "c2pa.edited" if opened else "c2pa.created",
        "digitalSourceType": source_type,
        "softwareAgent": SOFTWARE,
    }
    if used:
        action["parameters"] = {"ingredientIds": used}
    actions = [{"action": "c2pa.opened", "parameters": {"ingredientIds": opened}}] if opened else []
    return {
        "claim_generator_info": [SOFTWARE],
        "format": content_type,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [*actions, action]}},
            {"label": GENERATION, "data": dict(generation)},
        ],
    }


def generation_of(manifest: Manifest | UpscaleManifest, prompt: bool) -> dict[str, Any]:
    """What GENERATION says of an image besides its job: name and SHA-256 of all weights, and maybe the prompt."""
    if isinstance(manifest, UpscaleManifest):
        return {"upscaler": _named(manifest.upscaler, manifest.hash)}
    said: dict[str, Any] = {}
    for field in ("controlnets", "embeddings", "loras", "model", "references", "refiner", "vae"):
        value = getattr(manifest, field)
        records = value if isinstance(value, tuple) else () if value is None else (value,)
        if field == "loras":
            records = (*records, *(lora for region in manifest.regions for lora in region.loras))
        if records:
            hashes = dict.fromkeys((record.name, record.hash) for record in records)
            named = [_named(name, sha256) for name, sha256 in hashes]
            said[field] = named if isinstance(value, tuple) else named[0]
    hires = manifest.hires
    if hires is not None and hires.upscaler_hash is not None:
        said["upscaler"] = _named(hires.upscaler, hires.upscaler_hash)
    if hires is not None and hires.model is not None:
        said["second_pass_model"] = _named(hires.model, hires.model_hash)
    if manifest.details:
        said["detectors"] = [_named(detail.detector, detail.detector_hash) for detail in manifest.details]
    if prompt:
        said["prompt"] = manifest.prompt
    return said


def _named(name: str, sha256: str | None) -> dict[str, str | None]:
    return {"name": name, "sha256": sha256}
