"""What an image file says of its origin: everything it takes to draw the image again, resolved.

There is no time and no job id in a manifest, so that the same request gives the same file.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from deployments.engine.parameters import DenoisingParameters
from serve_app.schemas.generation_request import ControlSettings, InpaintRequest, LoraRequest
from serve_app.schemas.resolved import HiresInput, PromptTexts


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class CheckpointRecord(_Record):
    """A checkpoint that took part. hash: sha256 over its UNet weight files."""

    name: str
    hash: str


class RefinerRecord(CheckpointRecord):
    """The refiner that took over. switch_at: the fraction of the schedule at which it did."""

    switch_at: float
    aesthetic_score: float = 6.0
    negative_aesthetic_score: float = 2.5


class LoraRecord(LoraRequest, _Record):
    """A LoRA that took part. hash: sha256 over its file."""

    hash: str


class ControlnetRecord(ControlSettings, _Record):
    """A ControlNet that steered the image. hash: sha256 over its weight files. sha256: of the picture's file."""

    name: str
    hash: str
    sha256: str


class ImageRecord(InpaintRequest, _Record):
    """The picture that the image began with. sha256, mask_sha256: of the files that the request brought, hex.

    outpaint: left, top, right, bottom, in pixels.
    """

    sha256: str
    mask_sha256: str | None = None
    outpaint: tuple[int, int, int, int] | None = None


class HiresRecord(HiresInput, _Record):
    """The second pass. upscaler_hash: sha256 over the upscaler's file where it is a model."""

    upscaler_hash: str | None = None


class SafetyRecord(_Record):
    """What the safety layers made of the image. score: of the unsafe label, 0..1; None where none was asked."""

    mode: str
    action: str
    flagged: bool = False
    score: float | None = None
    flagged_by: tuple[str, ...] = ()


class Manifest(PromptTexts, _Record, DenoisingParameters):
    """A drawn image.

    versions: of the software by name ("darkroom", "torch", "diffusers", …).
    model, refiner: the checkpoints. seed: this image's own. width, height: of the first pass where there is a second.
    loras: whether the request or a prompt named them; those of weight 0 apart.
    controlnets: what steered it.
    image, strength: what it began with and how far it went from there, None without.
    device, dtype: where it was drawn ("cpu", "cuda"; "float32", …).
    reproducibility: "bucket:<rows>" where the batch was pinned, else "best-effort".
    """

    manifest_version: Literal[1] = 1
    versions: dict[str, str]
    model: CheckpointRecord
    refiner: RefinerRecord | None = None
    seed: int = Field(ge=0, lt=2**63)
    loras: tuple[LoraRecord, ...] = ()
    controlnets: tuple[ControlnetRecord, ...] = ()
    image: ImageRecord | None = None
    strength: float | None = None
    hires: HiresRecord | None = None
    device: str
    dtype: str
    reproducibility: str
    safety: SafetyRecord

    @field_validator("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")
    @classmethod
    def _is_text(cls, text: str | None) -> str | None:
        try:
            (text or "").encode()
        except UnicodeEncodeError:
            raise ValueError("holds half a character (a lone surrogate), which no file can") from None
        return text


class UpscaleManifest(_Record):
    """An enlarged picture.

    upscaler: "lanczos" or a model's name. hash: sha256 over the model's file, None of lanczos.
    sha256: of the file that came, hex. source_width, source_height: of the picture in it. width, height: of the image.
    versions, device, dtype, safety: as in Manifest.
    """

    manifest_version: Literal[1] = 1
    operation: Literal["upscale"] = "upscale"
    versions: dict[str, str]
    upscaler: str
    hash: str | None = None
    sha256: str
    source_width: int
    source_height: int
    width: int
    height: int
    device: str
    dtype: str
    safety: SafetyRecord
