"""One model of the catalogue: its checkpoint, and what a request may ask of it.

Settings only, nothing is loaded.
"""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import Section
from deployments.engine.errors import UnknownSampler
from deployments.engine.prompts.syntax import MAX_LORA_WEIGHT
from deployments.engine.samplers.names import ZERO_SNR_SAMPLERS, canonical, split

# a model's name is also Serve's model id and part of URLs
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]

# the VAE of every family shrinks a picture eight times
SIZE_STEP = 8

MAX_LORAS = 8  # of a model, and of a request besides


class IntRange(Section):
    """Whole numbers.

    min: the smallest allowed. max: the largest allowed.
    """

    min: int = Field(ge=1, le=1 << 20)
    max: int = Field(ge=1, le=1 << 20)

    @model_validator(mode="after")
    def _ordered(self) -> "IntRange":
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int) and self.min <= value <= self.max

    def __str__(self) -> str:
        return f"{self.min}..{self.max}"


class FloatRange(Section):
    """Real numbers.

    min: the smallest allowed. max: the largest allowed.
    """

    min: float = Field(ge=0.0, le=1e6)
    max: float = Field(ge=0.0, le=1e6)

    @model_validator(mode="after")
    def _ordered(self) -> "FloatRange":
        if self.min > self.max:
            raise ValueError(f"min ({self.min:g}) is above max ({self.max:g})")
        return self

    def __contains__(self, value: object) -> bool:
        return isinstance(value, (int, float)) and self.min <= value <= self.max

    def __str__(self) -> str:
        return f"{self.min:g}..{self.max:g}"


class ModelDefaults(Section):
    """What a request gets that doesn't say.

    steps: the sampler's inference steps. guidance_scale: classifier-free guidance; 1 is none.
    width, height: pixels. sampler: any name that deployments/engine/samplers/names.py knows.
    guidance_rescale: how much of the contrast that guidance adds is taken away again (arXiv:2305.08891), 0..1;
        checkpoints with zero terminal SNR want about 0.7.
    """

    steps: int = 25
    guidance_scale: float = 7.5
    width: int = 512
    height: int = 512
    sampler: str = "dpmpp_2m"
    guidance_rescale: float = Field(default=0.0, ge=0.0, le=1.0)

    @field_validator("sampler")
    @classmethod
    def _known_sampler(cls, name: str) -> str:
        try:
            return canonical(name)
        except UnknownSampler as error:
            raise ValueError(error.message) from None


class ModelLimits(Section):
    """What a request may ask.

    steps: range of the inference steps. guidance_scale: range of the guidance.
    width, height: ranges in pixels; sizes are multiples of 8.
    max_pixels: largest width * height; None for no further limit.
    max_hires_pixels: largest width * height of a second pass; None: what holds for the first.
    max_clip_skip: most layers of the text encoders that may be left out, beyond those that the family leaves out.
    """

    steps: IntRange = IntRange(min=10, max=50)
    guidance_scale: FloatRange = FloatRange(min=1.0, max=20.0)
    width: IntRange = IntRange(min=256, max=1024)
    height: IntRange = IntRange(min=256, max=1024)
    max_pixels: int | None = Field(default=None, ge=SIZE_STEP * SIZE_STEP)
    max_hires_pixels: int | None = Field(default=None, ge=SIZE_STEP * SIZE_STEP)
    max_clip_skip: int = Field(default=10, ge=0, le=64)

    @property
    def most_pixels(self) -> int:
        """Of any image, a second pass included."""
        first = self.width.max * self.height.max
        if self.max_pixels is not None:
            first = min(first, self.max_pixels)
        return max(first, self.max_hires_pixels or 0)


class ModelLora(Section):
    """A LoRA that a model always wears.

    name: of the LoRAs' folder. weight: 1 is as it was trained; never 0.
    """

    name: str = Field(min_length=1)
    weight: float = Field(default=1.0, ge=-MAX_LORA_WEIGHT, le=MAX_LORA_WEIGHT)

    @field_validator("weight")
    @classmethod
    def _wears_it(cls, weight: float) -> float:
        if not weight:
            raise ValueError("weight is 0, which leaves the LoRA out: don't name it")
        return weight


class ModelSettings(CheckpointSpec):
    """A model: a checkpoint, what it wears, its defaults and limits, its papers.

    family: "sd15", "sdxl", or "sdxl-refiner" (which only refines, and can't be asked for by itself).
    source: a diffusers folder, a hub id, a .safetensors file, or "package:<package>/<folder>".
    revision: of a hub id. variant: as in diffusers ("fp16").
    config: for a single file, a diffusers folder or hub id that describes its architecture.
    vae: a source of another VAE in place of the checkpoint's own.
    scheduler: what is to be said in place of its scheduler configuration.
    loras: what it always wears, before the LoRAs of a request; an LCM-LoRA makes a few-step model of any checkpoint.
    defaults: what a request gets that doesn't say. limits: what it may ask.
    refiner: name of the sdxl-refiner model that finishes this model's images unless the request says false.
    switch_at: fraction of the schedule at which the refiner takes over.
    licence: the weights' licence, shown in GET /models. description: one line for people, shown there too.
    tenants: of API keys that may use it; for others, but for admins, it doesn't exist. None is everybody.
    """

    loras: tuple[ModelLora, ...] = Field(default=(), max_length=MAX_LORAS)
    defaults: ModelDefaults = ModelDefaults()
    limits: ModelLimits = ModelLimits()
    refiner: ModelName | None = None
    switch_at: float = Field(default=0.8, gt=0.0, lt=1.0)
    licence: str = Field(default="unknown", min_length=1, max_length=200)
    description: str = Field(default="", max_length=1_000)
    tenants: tuple[str, ...] | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _consistent(self) -> "ModelSettings":
        if self.refiner is not None and self.family != "sdxl":
            raise ValueError(f"refiner: only a model of family sdxl has one, this is {self.family}")
        if self.tenants is not None and self.family == "sdxl-refiner":
            raise ValueError("tenants: who may use a refiner is who may use the models that it refines")
        if self.family != "sdxl-refiner":  # a refiner's defaults and limits are those of the model it refines
            for name in ("steps", "guidance_scale", "width", "height"):
                if getattr(self.defaults, name) not in getattr(self.limits, name):
                    raise ValueError(
                        f"defaults.{name} ({getattr(self.defaults, name):g}) is outside limits.{name} "
                        f"({getattr(self.limits, name)})"
                    )
            for name in ("width", "height"):
                if getattr(self.defaults, name) % SIZE_STEP:
                    raise ValueError(f"defaults.{name} ({getattr(self.defaults, name)}) is no multiple of {SIZE_STEP}")
            pixels = self.defaults.width * self.defaults.height
            if self.limits.max_pixels is not None and pixels > self.limits.max_pixels:
                raise ValueError(
                    f"defaults.width * defaults.height ({pixels}) is above limits.max_pixels ({self.limits.max_pixels})"
                )
        return self

    @model_validator(mode="after")
    def _wears_each_once(self) -> "ModelSettings":
        if self.loras and self.family == "sdxl-refiner":
            raise ValueError("loras: a refiner wears none, they are for what begins an image")
        names = [lora.name for lora in self.loras]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"loras: {twice!r} stands twice")
        return self

    @model_validator(mode="after")
    def _sampler_suits(self) -> "ModelSettings":
        sampler = split(self.defaults.sampler)[0]
        if self.scheduler.rescale_betas_zero_snr and sampler not in ZERO_SNR_SAMPLERS:
            raise ValueError(
                f"defaults.sampler: {sampler} knows no zero terminal SNR (scheduler.rescale_betas_zero_snr); "
                f"these do: {', '.join(sorted(ZERO_SNR_SAMPLERS))}"
            )
        if self.defaults.guidance_rescale and self.limits.guidance_scale.max <= 1:
            raise ValueError("defaults.guidance_rescale is of no use: limits.guidance_scale allows no guidance")
        return self

    def checkpoint(self) -> CheckpointSpec:
        """The engine's part of it."""
        return CheckpointSpec(**{name: getattr(self, name) for name in CheckpointSpec.model_fields})
