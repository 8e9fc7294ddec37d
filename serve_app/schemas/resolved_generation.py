"""What is drawn: a generation with nothing left open, which is stored with its job and draws the same images again.

Plain data. Knows no model, no stage and no store.
"""

from pydantic import BaseModel, ConfigDict

from deployments.engine.prompts.syntax import read_prompt
from deployments.engine.types import LatentUpscaler
from serve_app.config.settings import OutputFormat, SafetyMode
from serve_app.schemas.generation_request import (
    LATENT_UPSCALERS,
    PIXEL_UPSCALERS,
    Fit,
    LoraRequest,
    Preprocessor,
    PriorityName,
)


class ImageInput(BaseModel):
    """What a generation does with the picture that it begins with; the pixels are kept beside the job.

    sha256, mask_sha256: of the files as they came, hex. masked: part of it is left alone.
    strength: how much of the schedule runs. blur, invert, only_masked, padding: as in InpaintRequest.
    outpaint: pixels by which it is extended: left, top, right, bottom.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    sha256: str
    mask_sha256: str | None = None
    strength: float
    masked: bool = False
    blur: int = 0
    invert: bool = False
    only_masked: bool = False
    padding: int = 0
    outpaint: tuple[int, int, int, int] | None = None


class HiresInput(BaseModel):
    """The second pass of a generation.

    width, height: of its images. upscaler: how the first pass's are brought there; what is no known way is a model's
    name. strength: how much of the schedule runs. steps: of that whole schedule. sampler: a canonical name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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


class ControlInput(BaseModel):
    """A ControlNet that steers a generation; the picture is kept beside the job.

    model: of the ControlNets' folder. sha256: of the picture's file as it came, hex. preprocessor, low, high, fit,
    scale, start, end: as in ControlnetRequest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str
    sha256: str
    preprocessor: Preprocessor
    low: int
    high: int
    fit: Fit
    scale: float
    start: float
    end: float


class ResolvedGeneration(BaseModel):
    """A request with nothing left open; stored with its job.

    model: of the catalogue. seed: of the first image. sampler: a canonical name.
    prompt_2, negative_prompt_2: None where SDXL's second text encoder is told the same as the first.
    refiner, switch_at: the refining model and the fraction at which it takes over; None without one.
    guidance_start, guidance_end: fractions of the schedule between which there is guidance.
    loras: what the model wears, each name once: its own, the request's and the prompts'.
    controlnets: what steers it, those of scale 0 apart.
    image: the picture that it begins with, None without one. hires: the second pass, None without one.
    safety: the stricter of the request's and the service's mode.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    prompt: str
    negative_prompt: str
    prompt_2: str | None = None
    negative_prompt_2: str | None = None
    model: str
    n: int
    seed: int
    steps: int
    guidance_scale: float
    guidance_rescale: float = 0.0
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    clip_skip: int = 0
    width: int
    height: int
    sampler: str
    refiner: str | None
    switch_at: float | None
    output_format: OutputFormat
    reproducible: bool
    priority: PriorityName
    timeout_s: float
    safety: SafetyMode
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

    @property
    def prompts(self) -> tuple[str, ...]:
        """All that there are, as they were written."""
        given = (self.prompt, self.negative_prompt, self.prompt_2, self.negative_prompt_2)
        return tuple(prompt for prompt in given if prompt is not None)

    @property
    def shown_texts(self) -> tuple[str, ...]:
        """What the image is to show: the prompts as they were written, and as they are read without their marks, in a
        second pass too; the LoRAs' names.
        """
        taken, texts = self.taken_steps, []
        for prompt in (self.prompt, self.prompt_2):
            if prompt is not None:
                texts += [prompt, *read_prompt(prompt, taken).plain_texts]
                if self.hires is not None:
                    texts += read_prompt(prompt, self.hires.taken_steps, before=taken).plain_texts
        return *dict.fromkeys(texts), *(lora.name for lora in self.loras)
