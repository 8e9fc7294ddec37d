"""What a job does, with nothing left open: stored with the job, it gives the same images again."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from deployments.engine.parameters import DenoisingParameters
from deployments.engine.types import LatentUpscaler
from serve_app.config.settings import OutputFormat, SafetyMode
from serve_app.schemas.generation_request import (
    LATENT_UPSCALERS,
    PIXEL_UPSCALERS,
    ControlSettings,
    InpaintRequest,
    LoraRequest,
    PriorityName,
)


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


class ImageInput(InpaintRequest, _Stored):
    """What a generation does with the picture that it begins with; the pixels are kept beside the job.

    sha256, mask_sha256: of the files as they came, hex. masked: part of it is left alone.
    strength: how much of the schedule runs. outpaint: pixels by which it is extended: left, top, right, bottom.
    """

    sha256: str
    mask_sha256: str | None = None
    strength: float
    masked: bool = False
    outpaint: tuple[int, int, int, int] | None = None


class HiresInput(_Stored):
    """The second pass of a generation.

    width, height: of its images. upscaler: how the first pass's are brought there; what is no known way is a model's
    name. strength: how much of the schedule runs. steps: of that whole schedule. sampler: a canonical name.
    """

    width: int
    height: int
    upscaler: str
    strength: float
    steps: int
    sampler: str

    @property
    def taken_steps(self) -> int:
        """Inference steps that it takes."""
        return int(self.steps * self.strength)

    @property
    def latent_upscaler(self) -> LatentUpscaler | None:
        """The upscaler where it is one of latents, None where it is one of pixels."""
        return next((known for known in LATENT_UPSCALERS if known == self.upscaler), None)

    @property
    def model(self) -> str | None:
        """The upscaler where it is a model, of the upscalers' folder."""
        return None if self.upscaler in (*LATENT_UPSCALERS, *PIXEL_UPSCALERS) else self.upscaler


class ControlInput(ControlSettings, _Stored):
    """A ControlNet that steers a generation; the picture is kept beside the job.

    model: of the ControlNets' folder. sha256: of the picture's file as it came, hex.
    """

    model: str
    sha256: str


class PromptTexts(_Stored):
    """What the text encoders read.

    prompt_2, negative_prompt_2: None where SDXL's second text encoder reads the same as the first.
    clip_skip: last layers of the text encoders that are left out.
    """

    prompt: str
    negative_prompt: str = ""
    prompt_2: str | None = None
    negative_prompt_2: str | None = None
    clip_skip: int = 0

    def texts(self) -> dict[str, Any]:
        """These fields by name, without what a class that inherits them adds."""
        return {name: getattr(self, name) for name in PromptTexts.model_fields}

    @property
    def prompts(self) -> tuple[str, ...]:
        """All that there are, as they were written."""
        texts = (self.prompt, self.negative_prompt, self.prompt_2, self.negative_prompt_2)
        return tuple(text for text in texts if text is not None)


class ResolvedJob(_Stored):
    """What every job has. safety: the stricter of the request's and the service's mode."""

    output_format: OutputFormat
    priority: PriorityName
    timeout_s: float
    safety: SafetyMode


class ResolvedGeneration(PromptTexts, ResolvedJob, DenoisingParameters):
    """Images to draw.

    model: of the catalogue. seed: of the first image.
    refiner, switch_at: the refining model and the fraction at which it takes over; None without one.
    loras: each name once: the model's own, the request's and the prompts'.
    controlnets: what steers it, those of scale 0 apart.
    image: the picture that it begins with, None without one. hires: the second pass, None without one.
    """

    model: str
    n: int
    refiner: str | None
    switch_at: float | None
    reproducible: bool
    preview: bool
    image: ImageInput | None = None
    hires: HiresInput | None = None
    loras: tuple[LoraRequest, ...] = ()
    controlnets: tuple[ControlInput, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """One per image."""
        return tuple(range(self.seed, self.seed + self.n))

    @property
    def taken_steps(self) -> int:
        """Inference steps of an image: a strength leaves out the first ones."""
        return self.steps if self.image is None else int(self.steps * self.image.strength)


class ResolvedUpscale(ResolvedJob):
    """A picture to enlarge; it is kept beside the job.

    sha256: of the file as it came, hex. upscaler: "lanczos", or a name of the upscalers' folder.
    source_width, source_height: of the picture. width, height: of the result.
    """

    operation: Literal["upscale"] = "upscale"
    sha256: str
    upscaler: str
    source_width: int
    source_height: int
    width: int
    height: int

    @property
    def n(self) -> int:
        """Images of the job."""
        return 1

    @property
    def prompts(self) -> tuple[str, ...]:
        """None."""
        return ()


Operation = ResolvedGeneration | ResolvedUpscale


def read_operation(stored: Mapping[str, Any]) -> Operation:
    """What a job's stored request says. Raises ValueError (pydantic's)."""
    if stored.get("operation") == "upscale":
        return ResolvedUpscale.model_validate(stored)
    return ResolvedGeneration.model_validate(stored)
