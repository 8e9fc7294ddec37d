"""Settings of one model of the catalogue: its checkpoint, and what a request may choose."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from deployments.engine.checkpoints.spec import AddedCheckpoint, CheckpointSpec
from deployments.engine.config import Section
from deployments.engine.errors import UnknownSampler
from deployments.engine.families.registry import FAMILIES
from deployments.engine.memory.limits import AllowedSizes, RequestSize
from deployments.engine.prompts.syntax import MAX_LORA_WEIGHT
from deployments.engine.samplers.registry import SAMPLERS, canonical, entry

# a model's name is also Serve's model id and part of URLs
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]

# pixels of a latent cell's side: the VAE of every family reduces width and height eight times
SIZE_STEP = 8

MAX_LORAS = 8  # of a model; a request may add as many


class IntRange(Section):
    """A range of whole numbers."""

    min: int = Field(ge=1, le=1 << 20, examples=[256])
    """Smallest allowed value."""
    max: int = Field(ge=1, le=1 << 20, examples=[1024])
    """Largest allowed value."""

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
    """A range of real numbers."""

    min: float = Field(ge=0.0, le=1e6, examples=[1.0])
    """Smallest allowed value."""
    max: float = Field(ge=0.0, le=1e6, examples=[20.0])
    """Largest allowed value."""

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
    """Values of what a request leaves out."""

    steps: int = 25
    """Inference steps of the sampler."""
    guidance_scale: float = 7.5
    """Scale of classifier-free guidance; 1 is none."""
    width: int = 512
    """Width in pixels, a multiple of 8."""
    height: int = 512
    """Height in pixels, a multiple of 8."""
    sampler: str = "dpmpp_2m"
    """Sampler, by any of its names (GET /models lists them)."""
    guidance_rescale: float = Field(default=0.0, ge=0.0, le=1.0)
    """Part of the contrast added by guidance that is removed again (arXiv:2305.08891), 0 to 1. Checkpoints with zero
    terminal SNR need about 0.7."""

    @field_validator("sampler")
    @classmethod
    def _known_sampler(cls, name: str) -> str:
        try:
            return canonical(name)
        except UnknownSampler as error:
            raise ValueError(error.message) from None


class ModelLimits(Section):
    """Values that a request may choose."""

    steps: IntRange = IntRange(min=10, max=50)
    """Allowed inference steps."""
    guidance_scale: FloatRange = FloatRange(min=1.0, max=20.0)
    """Allowed guidance scales."""
    width: IntRange = IntRange(min=256, max=1024)
    """Allowed widths in pixels."""
    height: IntRange = IntRange(min=256, max=1024)
    """Allowed heights in pixels."""
    max_pixels: int | None = Field(default=None, ge=SIZE_STEP * SIZE_STEP, examples=[1024 * 1024])
    """Largest width * height; without it, width and height alone limit."""
    max_hires_pixels: int | None = Field(default=None, ge=SIZE_STEP * SIZE_STEP, examples=[2048 * 2048])
    """Largest width * height of a second pass (hires fix); without it, the limits of the first pass hold."""
    max_clip_skip: int = Field(default=10, ge=0, le=64)
    """Most layers of the text encoders that a request may skip, beyond those that the family skips."""

    @property
    def least_pixels(self) -> int:
        """Fewest pixels of an image."""
        width, height = (-(-allowed.min // SIZE_STEP) * SIZE_STEP for allowed in (self.width, self.height))
        return width * height

    @property
    def most_pixels(self) -> int:
        """Most pixels of any image, after a second pass too."""
        first = self.width.max * self.height.max
        if self.max_pixels is not None:
            first = min(first, self.max_pixels)
        return max(first, self.max_hires_pixels or 0)


def allowed_sizes(of_models: Sequence[ModelLimits]) -> AllowedSizes:
    """The sizes of images that a checkpoint may draw for models with these limits."""
    return AllowedSizes(
        smallest=RequestSize(
            pixels=min(limits.least_pixels for limits in of_models),
            guided=all(limits.guidance_scale.min > 1 for limits in of_models),
        ),
        largest=RequestSize(
            pixels=max(limits.most_pixels for limits in of_models),
            guided=any(limits.guidance_scale.max > 1 for limits in of_models),
        ),
    )


class ModelLora(Section):
    """A LoRA that a model always has applied."""

    name: str = Field(min_length=1, examples=["lcm-lora-sdv1-5"])
    """Name of the file in loras.folder, without its ending."""
    weight: float = Field(default=1.0, ge=-MAX_LORA_WEIGHT, le=MAX_LORA_WEIGHT)
    """Strength of the LoRA: 1 as trained, never 0."""

    @field_validator("weight")
    @classmethod
    def _not_zero(cls, weight: float) -> float:
        if not weight:
            raise ValueError("weight is 0, which has no effect: remove the LoRA from the list")
        return weight


class ModelAlias(Section):
    """A further name of a model."""

    model: ModelName = Field(examples=["mine"])
    """The model that it means."""
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", examples=["0" * 64])
    """Hash that the weights of the model's UNet must have, as manifests name it (`model.hash`). If the model has others
    its jobs fail with `checkpoint_changed`."""


class ModelSettings(CheckpointSpec):
    """A model of the catalogue: its checkpoint, LoRAs, defaults and limits."""

    loras: tuple[ModelLora, ...] = Field(
        default=(), max_length=MAX_LORAS, examples=[[{"name": "lcm-lora-sdv1-5", "weight": 1.0}]]
    )
    """LoRAs that are always applied, before those of a request. An LCM-LoRA makes a few-step model of any checkpoint.
    """
    defaults: ModelDefaults = ModelDefaults()
    """Values of what a request leaves out."""
    limits: ModelLimits = ModelLimits()
    """Values that a request may choose."""
    refiner: ModelName | None = Field(default=None, examples=["demo-sdxl-refiner"])
    """Name of the refiner that finishes this model's images, unless the request says false."""
    switch_at: float = Field(default=0.8, gt=0.0, lt=1.0)
    """Fraction of the schedule after which the refiner takes over, between 0 and 1."""
    licence: str = Field(default="unknown", min_length=1, max_length=200)
    """Licence of the weights, shown in GET /models."""
    description: str = Field(default="", max_length=1_000, examples=["Photographs, 512 x 512"])
    """One line for people, shown in GET /models."""
    draws: str = Field(default="", max_length=1_000, examples=["Faces only, from the front."])
    """What it draws, if that isn't anything; shown in GET /models and on the page."""
    examples: tuple[Annotated[str, Field(min_length=1, max_length=1_000)], ...] = Field(
        default=(), max_length=12, examples=[["a large red circle on a blue background"]]
    )
    """Prompts that it draws well, shown likewise."""
    tenants: tuple[str, ...] | None = Field(default=None, min_length=1, examples=[["alice"]])
    """Tenants (of API keys) that may use it; for all others, admins excepted, it doesn't exist. Without it, everybody
    may."""
    serving: bool = True
    """Whether requests may name it. false takes it out of every list; jobs that were accepted before are finished."""

    @model_validator(mode="after")
    def _consistent(self) -> "ModelSettings":
        if self.refiner is not None and FAMILIES[self.family].refined_by is None:
            refined = " or ".join(name for name, family in FAMILIES.items() if family.refined_by)
            raise ValueError(f"refiner: only models of family {refined} can have one, this one is {self.family}")
        if self.tenants is not None and self.refines:
            raise ValueError("tenants: a refiner has none of its own; name them at the models that it refines")
        if not self.serving and self.refines:
            raise ValueError("serving: requests can't name a refiner anyway; set it at the models that it refines")
        if not self.refines:  # a refiner's defaults and limits are those of the model it refines
            for name in ("steps", "guidance_scale", "width", "height"):
                if getattr(self.defaults, name) not in getattr(self.limits, name):
                    raise ValueError(
                        f"defaults.{name} ({getattr(self.defaults, name):g}) is outside limits.{name} "
                        f"({getattr(self.limits, name)})"
                    )
            for name in ("width", "height"):
                if getattr(self.defaults, name) % SIZE_STEP:
                    raise ValueError(
                        f"defaults.{name} ({getattr(self.defaults, name)}) is not a multiple of {SIZE_STEP}"
                    )
            pixels = self.defaults.width * self.defaults.height
            if self.limits.max_pixels is not None and pixels > self.limits.max_pixels:
                raise ValueError(
                    f"defaults.width * defaults.height ({pixels}) is above limits.max_pixels ({self.limits.max_pixels})"
                )
        return self

    @model_validator(mode="after")
    def _loras_differ(self) -> "ModelSettings":
        if self.loras and self.refines:
            raise ValueError("loras: a refiner takes none; name them at the models that it refines")
        names = [lora.name for lora in self.loras]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"loras: {twice!r} is listed twice")
        return self

    @model_validator(mode="after")
    def _sampler_suits(self) -> "ModelSettings":
        sampler = self.defaults.sampler
        if self.scheduler.rescale_betas_zero_snr and not entry(sampler).zero_snr:
            raise ValueError(
                f"defaults.sampler: {sampler} doesn't support zero terminal SNR (scheduler.rescale_betas_zero_snr); "
                f"these do: {', '.join(name for name, known in SAMPLERS.items() if known.zero_snr)}"
            )
        if self.defaults.guidance_rescale and self.limits.guidance_scale.max <= 1:
            raise ValueError(
                "defaults.guidance_rescale has no effect: limits.guidance_scale.max allows no guidance above 1"
            )
        return self

    @property
    def refines(self) -> bool:
        """Whether it only finishes other models' images."""
        return FAMILIES[self.family].refines

    def checkpoint(self) -> CheckpointSpec:
        """The engine's part of it."""
        return CheckpointSpec(**{name: getattr(self, name) for name in CheckpointSpec.model_fields})

    @property
    def serves(self) -> bool:
        """Whether requests may name it now."""
        return self.serving

    @property
    def added(self) -> AddedCheckpoint | None:
        """What its requests bring to the stages; None for a model of the configuration file, which they know."""
        return None

    def name_in_stages(self, name: str) -> str:
        """The name of its checkpoint there; `name` is the model's."""
        return name


class AddedModel(ModelSettings):
    """A model that was added at run time."""

    addition: str
    """The id of the job that draws its first image. It tells the model from others that had its name before."""
    ready: bool
    """Whether its first image was drawn, and it isn't being removed."""

    @property
    def serves(self) -> bool:
        return self.serving and self.ready

    @property
    def added(self) -> AddedCheckpoint:
        return AddedCheckpoint(self.checkpoint(), allowed_sizes([self.limits]))

    def name_in_stages(self, name: str) -> str:
        return f"{name}@{self.addition[-8:]}"
