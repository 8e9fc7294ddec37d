"""The manifest in an image file: all that is needed to draw the image again.

It has no time and no job id, so that the same request gives the same file.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from deployments.engine.parameters import DenoisingParameters
from serve_app.schemas.generation_request import (
    ControlSettings,
    ImageFit,
    InpaintRequest,
    LoraRequest,
    RegionSettings,
    SteeringSettings,
)
from serve_app.schemas.resolved import DetailInput, HiresInput, PromptTexts


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


def _without_lone_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds a lone surrogate, half of a UTF-16 character") from None
    return text


class CheckpointRecord(_Record):
    """A checkpoint that took part; `hash` is the SHA-256 over its UNet weight files."""

    name: str
    hash: str


class RefinerRecord(CheckpointRecord):
    """The refiner; `switch_at` is the fraction of the schedule at which it took over."""

    switch_at: float
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5


class LoraRecord(LoraRequest, _Record):
    """A LoRA that took part; `hash` is the SHA-256 over its file."""

    hash: str


class EmbeddingRecord(_Record):
    """A textual inversion that a prompt named; `hash` is the SHA-256 over its file."""

    name: str
    hash: str


class VaeRecord(_Record):
    """The VAE that the request named in place of the models' own; `hash` is the SHA-256 over its weight files."""

    name: str
    hash: str


class ControlnetRecord(ControlSettings, _Record):
    """A ControlNet that steered the image; `hash` is over its weight files, `sha256` over the picture's file."""

    name: str
    hash: str
    sha256: str


class ReferenceRecord(SteeringSettings, _Record):
    """A picture that an IP-Adapter showed; `hash` is over its file, `sha256` over the picture's and the mask's."""

    name: str
    hash: str
    sha256: str
    mask_sha256: str | None = None


class RegionRecord(RegionSettings, _Record):
    """A part of the image with a prompt of its own; `mask_sha256` is over its mask's file, in place of a box."""

    mask_sha256: str | None = None
    loras: tuple[LoraRecord, ...] = ()

    @field_validator("prompt")
    @classmethod
    def _is_text(cls, text: str) -> str:
        return _without_lone_surrogates(text)


class ImageRecord(InpaintRequest, _Record):
    """The picture that the image began with; hashes of the request's files, `outpaint` as left, top, right, bottom."""

    sha256: str
    mask_sha256: str | None = None
    fit: ImageFit = "stretch"
    outpaint: tuple[int, int, int, int] | None = None


class HiresRecord(HiresInput, _Record):
    """The second pass; hashes are SHA-256 over the file of an upscaler that is a model, and of a model of its own."""

    upscaler_hash: str | None = None
    model_hash: str | None = None


class DetectionRecord(_Record):
    """Something that a detector found; edges are pixels of the image, right and bottom are beyond."""

    label: str
    score: float
    left: int
    top: int
    right: int
    bottom: int


class PartRecord(_Record):
    """A part of the image that was drawn over: its seed, and what was found there."""

    seed: int
    detections: tuple[DetectionRecord, ...]


class DetailRecord(DetailInput, _Record):
    """Parts of the image that were found and drawn over; `detector_hash` is over the detector's file."""

    detector_hash: str
    parts: tuple[PartRecord, ...]

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _is_text(cls, text: str | None) -> str | None:
        return None if text is None else _without_lone_surrogates(text)


class SafetyRecord(_Record):
    """The result of the safety layers; `score` of the unsafe label, 0..1, None if the classifier is off."""

    mode: str
    action: str
    flagged: bool = False
    score: float | None = None
    flagged_by: tuple[str, ...] = ()


class Manifest(PromptTexts, _Record, DenoisingParameters):
    """A drawn image.

    Attributes:
        versions: of the software, by name ("darkroom", "torch", "diffusers", …).
        seed: of this image.
        width, height: of the first pass if there is a second.
        loras: of the request, its prompts and the model, without those of weight 0.
        embeddings: those that the prompts name.
        base_weight: of the prompt where regions are.
        image, strength: the picture that it began with; None for text to image.
        device, dtype, reproducibility: as in DenoiseResult.
    """

    manifest_version: Literal[1] = 1
    versions: dict[str, str]
    model: CheckpointRecord
    refiner: RefinerRecord | None = None
    seed: int = Field(ge=0, lt=2**63)
    loras: tuple[LoraRecord, ...] = ()
    embeddings: tuple[EmbeddingRecord, ...] = ()
    controlnets: tuple[ControlnetRecord, ...] = ()
    references: tuple[ReferenceRecord, ...] = ()
    regions: tuple[RegionRecord, ...] = ()
    base_weight: float = 0.0
    vae: VaeRecord | None = None
    image: ImageRecord | None = None
    strength: float | None = None
    hires: HiresRecord | None = None
    details: tuple[DetailRecord, ...] = ()
    device: str
    dtype: str
    reproducibility: str
    safety: SafetyRecord

    @field_validator("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")
    @classmethod
    def _is_text(cls, text: str | None) -> str | None:
        return None if text is None else _without_lone_surrogates(text)


class UpscaleManifest(_Record):
    """An enlarged picture; the other fields as in Manifest.

    Attributes:
        upscaler: "lanczos" or a model's name.
        hash: SHA-256 over the model's file; None for lanczos.
        sha256: of the request's file, hex.
        source_width, source_height: of the picture in it.
        parameters: the infotext in that file; empty for none.
    """

    manifest_version: Literal[1] = 1
    operation: Literal["upscale"] = "upscale"
    versions: dict[str, str]
    upscaler: str
    hash: str | None = None
    sha256: str
    source_width: int
    source_height: int
    parameters: str = ""
    width: int
    height: int
    device: str
    dtype: str
    safety: SafetyRecord
