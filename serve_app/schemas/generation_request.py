"""A client's request for images, strict in its fields and their types.

planning/resolve.py completes it for a model.
"""

from collections.abc import Callable
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field

from deployments.engine.prompts.syntax import MAX_LORA_WEIGHT, without_comments
from deployments.engine.types import LatentUpscaler
from serve_app.config.settings import OutputFormat, SafetyMode

PriorityName = Literal["interactive", "normal", "batch"]

SEEDS = 1 << 63

# upscalers without a model: of latents, in the engine; of pixels
LATENT_UPSCALERS: tuple[LatentUpscaler, ...] = get_args(LatentUpscaler)
PIXEL_UPSCALERS = ("lanczos", "nearest")

Preprocessor = Literal["none", "canny", "lineart"]

Fit = Literal["stretch", "crop", "pad"]

ImageFit = Literal["stretch", "crop", "extend", "latent"]

Fill = Literal["original", "blur", "noise", "nothing"]

Combination = Literal["each", "all", "others"]

# of one request; and of each of them the parts that are drawn over
MAX_DETAILS, MAX_PARTS = 4, 16

# fields of a request that begins with an image
IMAGE_FIELDS = ("image", "mask", "strength", "fit", "inpaint", "outpaint")


class RequestPart(BaseModel):
    """An object of a request: no unknown fields, no number in place of a text."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def identity(self, *leave_out: str) -> dict[str, Any]:
        """What tells it from others, as JSON: all that differs from its default.

        So neither spelling out a default nor a later version with further fields makes it another request.

        Args:
            leave_out: fields that don't count.
        """
        return self.model_dump(mode="json", exclude=set(leave_out), exclude_defaults=True)


class JobOptions(RequestPart):
    """What any request may say of its job, whatever the job does."""

    output_format: OutputFormat | None = Field(default=None, description="Of the image files.")
    priority: PriorityName = Field(
        default="normal", description="interactive, normal or batch: who waits while a batch is full."
    )
    timeout_s: float | None = Field(default=None, gt=0.0, description="Seconds after which the job fails.")
    safety: SafetyMode | None = Field(
        default=None, description="block, blur or flag unsafe images; at least as strict as the service's own mode."
    )
    webhook_url: str | None = Field(
        default=None, min_length=1, description="Called when the job has ended; of a host that the service allows."
    )


class RefinerRequest(RequestPart):
    """How the refiner finishes the image."""

    switch_at: float | None = Field(
        default=None, gt=0.0, lt=1.0, description="Fraction of the schedule at which the refiner takes over."
    )


class GuidanceInterval(RequestPart):
    """The part of the schedule that has guidance; a step outside takes half the work."""

    start: float = Field(default=0.0, ge=0.0, lt=1.0, description="Fraction of the schedule from which on.")
    end: float = Field(default=1.0, gt=0.0, le=1.0, description="Fraction of the schedule up to which.")


class FreeURequest(RequestPart):
    """FreeU: factors of what the UNet's way up takes, at its first and its second level."""

    s1: float = Field(default=0.9, ge=0.0, le=4.0, description="Of the low frequencies of skip connections.")
    s2: float = Field(default=0.2, ge=0.0, le=4.0, description="Likewise, at the second level.")
    b1: float = Field(default=1.3, ge=0.0, le=4.0, description="Of half of the channels from below.")
    b2: float = Field(default=1.4, ge=0.0, le=4.0, description="Likewise, at the second level.")


class HiresRequest(RequestPart):
    """A second pass over the finished picture at a larger size."""

    scale: float | None = Field(default=None, gt=1.0, le=8.0, description="Times width and height; 2 by itself.")
    width: int | None = Field(default=None, ge=1, lt=SEEDS, description="Pixels, in place of scale.")
    height: int | None = Field(default=None, ge=1, lt=SEEDS, description="Pixels, in place of scale.")
    upscaler: str = Field(
        default="latent",
        min_length=1,
        description="How the first pass is brought to the second's size: one of latents, lanczos, nearest, or a model "
        "of GET /models (upscalers).",
    )
    strength: float = Field(default=0.7, gt=0.0, le=1.0, description="How far it may go from the first pass.")
    prompt: str | None = Field(default=None, min_length=1, description="In place of the first pass's.")
    negative_prompt: str | None = Field(default=None, description="In place of the first pass's.")
    steps: int | None = Field(default=None, ge=1, lt=SEEDS, description="Steps that it takes; the first's by itself.")
    sampler: str | None = Field(default=None, description="As scheduler; the first's by itself.")
    model: str | None = Field(default=None, min_length=1, description="Another of GET /models; the first's by itself.")


class InpaintRequest(RequestPart):
    """What is done with the mask."""

    blur: int = Field(default=0, ge=0, le=64, description="Radius in pixels over which what is painted fades in.")
    invert: bool = Field(default=False, description="Paint what is black in the mask.")
    only_masked: bool = Field(
        default=False, description="Draw the masked part alone, at width x height, and put it back scaled."
    )
    padding: int = Field(
        default=32, ge=0, le=1024, description="Pixels around the masked part that are drawn along, with only_masked."
    )
    fill: Fill = Field(
        default="original",
        description="What drawing begins with there: the image, the colours around it, noise, or nothing.",
    )


class OutpaintRequest(RequestPart):
    """By how many pixels the image is extended; what is new is painted."""

    left: int = Field(default=0, ge=0, le=4096)
    top: int = Field(default=0, ge=0, le=4096)
    right: int = Field(default=0, ge=0, le=4096)
    bottom: int = Field(default=0, ge=0, le=4096)

    @property
    def by(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom."""
        return self.left, self.top, self.right, self.bottom


class LoraRequest(RequestPart):
    """A LoRA on the model."""

    name: str = Field(min_length=1, description="A name of GET /models.")
    weight: float = Field(
        default=1.0, ge=-MAX_LORA_WEIGHT, le=MAX_LORA_WEIGHT, description="1: as it was trained; 0 leaves it out."
    )
    text_weight: float | None = Field(
        default=None,
        ge=-MAX_LORA_WEIGHT,
        le=MAX_LORA_WEIGHT,
        description="In the text encoders, where it isn't the weight in the UNet.",
    )

    @property
    def weights(self) -> tuple[float, float]:
        """In the UNet and in the text encoders."""
        return self.weight, self.weight if self.text_weight is None else self.text_weight


class SteeringSettings(RequestPart):
    """How strongly and when a picture steers the image."""

    scale: float = Field(default=1.0, ge=0.0, le=10.0, description="How strongly; 0 leaves it out.")
    start: float = Field(default=0.0, ge=0.0, lt=1.0, description="Fraction of the steps from which on.")
    end: float = Field(default=1.0, gt=0.0, le=1.0, description="Fraction of the steps up to which.")


class ControlSettings(SteeringSettings):
    """How a ControlNet steers the image."""

    preprocessor: Preprocessor = Field(
        default="none", description="What it is shown of the picture: all of it, Canny's edges, or soft lines."
    )
    low: int = Field(default=100, ge=0, le=255, description="Of Canny: an edge goes on while it is above this.")
    high: int = Field(default=200, ge=0, le=255, description="Of Canny: an edge begins above this.")
    fit: Fit = Field(default="stretch", description="How the picture is brought to the result's shape.")


class ControlnetRequest(ControlSettings):
    """A ControlNet that steers the image."""

    model: str = Field(min_length=1, description="A name of GET /models (controlnets).")
    image: str | None = Field(
        default=None,
        description="What it looks at, sent as the request's image is; by itself what the request begins with.",
    )


class ReferenceRequest(SteeringSettings):
    """A picture whose contents and style the image takes up, by an IP-Adapter."""

    model: str = Field(min_length=1, description="A name of GET /models (ip_adapters).")
    image: str | None = Field(
        default=None,
        description="The picture, sent as the request's image is; by itself what the request begins with.",
    )
    mask: str | None = Field(
        default=None, description="Where in the result it is shown: white. Without one everywhere."
    )


class BoxRequest(RequestPart):
    """A rectangle of the result, in fractions of its width and height."""

    x: float = Field(ge=0.0, lt=1.0, description="Of its left side.")
    y: float = Field(ge=0.0, lt=1.0, description="Of its upper side.")
    width: float = Field(gt=0.0, le=1.0, description="x + width is at most 1.")
    height: float = Field(gt=0.0, le=1.0, description="y + height is at most 1.")


class RegionSettings(RequestPart):
    """What a part of the image shows."""

    prompt: str = Field(min_length=1, description="What it shows.")
    box: BoxRequest | None = Field(default=None, description="Where it is; or a mask says it.")
    weight: float = Field(default=1.0, ge=0.01, le=10.0, description="Against other regions' and the base_weight.")
    loras: tuple[LoraRequest, ...] = Field(
        default=(),
        strict=False,
        description="LoRAs of its own, besides the image's and those that its prompt names; of one that the image has, "
        "too, this weight is taken.",
    )


class RegionRequest(RegionSettings):
    """A part of the image with a prompt of its own."""

    mask: str | None = Field(
        default=None,
        description="In place of a box: a picture, sent as the request's image is, white where the region is. It is "
        "stretched to the result's shape.",
    )


class DetailSettings(RequestPart):
    """What is found in the finished image, and how it is drawn over."""

    detector: str = Field(min_length=1, description="A name of GET /models (detectors).")
    classes: tuple[str, ...] = Field(
        default=(), strict=False, max_length=64, description="Of those that it finds; all by itself."
    )
    confidence: float = Field(default=0.3, ge=0.0, le=1.0, description="Probability from which on something counts.")
    max_count: int = Field(default=4, ge=1, le=MAX_PARTS, description="Most parts that are drawn over, the largest.")
    min_area: float = Field(default=0.0, ge=0.0, le=1.0, description="Of a part, as a fraction of the image.")
    max_area: float = Field(default=1.0, ge=0.0, le=1.0, description="Likewise.")
    offset_x: int = Field(
        default=0, ge=-4096, le=4096, description="Pixels by which the mask of a part is moved right."
    )
    offset_y: int = Field(default=0, ge=-4096, le=4096, description="Likewise down.")
    dilation: int = Field(
        default=2, ge=-512, le=512, description="Pixels that it grows at each side; below 0 it shrinks."
    )
    combine: Combination = Field(
        default="each",
        description="each: parts are drawn over one by one; all: as one; others: all but the parts is drawn over.",
    )
    blur: int = Field(default=4, ge=0, le=64, description="Radius in pixels over which what is drawn fades in.")
    padding: int = Field(default=32, ge=0, le=1024, description="Pixels around a part that are drawn along.")
    strength: float = Field(default=0.4, gt=0.0, le=1.0, description="How far it may go from the image.")


class DetailRequest(DetailSettings):
    """Parts of the finished image that are found by a detector, and drawn over at a higher resolution."""

    prompt: str | None = Field(default=None, min_length=1, description="In place of the image's.")
    negative_prompt: str | None = Field(default=None, description="In place of the image's.")
    steps: int | None = Field(default=None, ge=1, lt=SEEDS, description="The image's by itself, as all that follows.")
    guidance_scale: float | None = Field(default=None, ge=0.0, description="As of the image.")
    sampler: str | None = Field(default=None, description="As scheduler.")
    width: int | None = Field(default=None, ge=1, lt=SEEDS, description="At which a part is drawn; the model's own.")
    height: int | None = Field(default=None, ge=1, lt=SEEDS, description="Likewise.")


OWN_PROMPTS = ("prompt", "negative_prompt")
PROMPTS = ("prompt", "negative_prompt", "prompt_2", "negative_prompt_2")


class GenerationRequest(JobOptions):
    """One request for images. What is left out, the model's defaults say (GET /models)."""

    prompt: str = Field(description="What the image shows; may be empty where there is an image to begin with.")
    negative_prompt: str = Field(default="", description="What the image should not show.")
    prompt_2: str | None = Field(
        default=None, min_length=1, description="For the second text encoder of an SDXL model, in place of the prompt."
    )
    negative_prompt_2: str | None = Field(default=None, description="The negative prompt for the second text encoder.")
    model: str | None = Field(default=None, description="A model's name, of GET /models; without it, the default one.")
    n: int = Field(default=1, ge=1, lt=SEEDS, description="Number of images; their seeds are seed, seed + 1, …")
    seed: int | None = Field(default=None, ge=0, lt=SEEDS, description="Seed of the first image; random if left out.")
    variation_seed: int | None = Field(
        default=None, ge=0, lt=SEEDS, description="Of a second noise that is mixed into the seed's."
    )
    variation_strength: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        description="How much of it; all images then have one seed, and the variation seeds variation_seed, + 1, …",
    )
    noise_width: int | None = Field(
        default=None, ge=8, lt=SEEDS, description="Pixels of an image whose noise is taken for the middle of this one."
    )
    noise_height: int | None = Field(default=None, ge=8, lt=SEEDS, description="Likewise.")
    noise_seed_delta: int | None = Field(
        default=None, gt=-SEEDS, lt=SEEDS, description="Added to the seed for the noise that a sampler draws."
    )
    steps: int | None = Field(default=None, ge=1, lt=SEEDS, description="Inference steps of the sampler.")
    guidance_scale: float | None = Field(
        default=None,
        ge=0.0,
        description="How closely to follow the prompt (classifier-free guidance); 1 is none, at half the work.",
    )
    guidance_rescale: float | None = Field(
        default=None, ge=0.0, le=1.0, description="How much of the contrast that guidance adds is taken away again."
    )
    guidance_interval: GuidanceInterval | None = Field(
        default=None, description="Guidance in this part of the schedule only."
    )
    clip_skip: int = Field(
        default=0, ge=0, lt=SEEDS, description="Last layers of the text encoders that are left out; 0: as trained."
    )
    width: int | None = Field(default=None, ge=1, lt=SEEDS, description="Pixels, a multiple of 8.")
    height: int | None = Field(default=None, ge=1, lt=SEEDS, description="Pixels, a multiple of 8.")
    scheduler: str | None = Field(
        default=None, description='Sampler: "dpmpp_2m_karras", "DPM++ SDE Karras", "EulerDiscreteScheduler", …'
    )
    eta: float | None = Field(
        default=None, ge=0.0, le=1.0, description="How much of each step's noise a sampler of the web UI draws anew."
    )
    s_churn: float | None = Field(
        default=None, ge=0.0, le=1000.0, description="Noise that such a sampler adds before each of its steps."
    )
    s_tmin: float | None = Field(default=None, ge=0.0, description="Noise level from which on it adds that.")
    s_tmax: float | None = Field(default=None, ge=0.0, description="Noise level up to which it adds that.")
    s_noise: float | None = Field(
        default=None, ge=0.0, le=10.0, description="What a sampler multiplies its noise with; 1 by itself."
    )
    refiner: RefinerRequest | bool | None = Field(
        default=None, description="false: the base model alone; an object: with the model's refiner."
    )
    loras: tuple[LoraRequest, ...] = Field(
        default=(), strict=False, description="LoRAs besides those that the prompt names."
    )
    controlnets: tuple[ControlnetRequest, ...] = Field(
        default=(), strict=False, description="What steers the image, each model once."
    )
    references: tuple[ReferenceRequest, ...] = Field(
        default=(), strict=False, description="Pictures that the image takes up, by IP-Adapters."
    )
    regions: tuple[RegionRequest, ...] = Field(
        default=(), strict=False, description="Parts of the image with prompts of their own."
    )
    base_weight: float | None = Field(
        default=None, ge=0.0, le=1.0, description="How much the prompt counts where regions are."
    )
    freeu: FreeURequest | None = Field(default=None, description="FreeU, at no cost of time: {} for usual factors.")
    vae: str | None = Field(
        default=None,
        min_length=1,
        description="A name of GET /models (vaes): it decodes, and encodes, in place of the model's own VAE.",
    )
    image: str | None = Field(
        default=None,
        description="What to begin with: a PNG, JPEG or WebP file as base64 or a data URL. Never fetched from a URL. "
        "Without width and height the result has its size.",
    )
    mask: str | None = Field(
        default=None, description="Likewise, as large as the image: white is painted anew, black left as it is."
    )
    strength: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        description="How far the result may go from the image, up to 1; if left out 0.8, and 1 with a mask.",
    )
    fit: ImageFit | None = Field(
        default=None,
        description="How the image is brought to width x height: stretch; crop; extend, which repeats its edges; or "
        "latent, which stretches its latents.",
    )
    inpaint: InpaintRequest | None = Field(default=None, description="What is done with the mask.")
    outpaint: OutpaintRequest | None = Field(default=None, description="Extend the image, and paint what is new.")
    hires: HiresRequest | None = Field(default=None, description="A second pass at a larger size.")
    details: tuple[DetailRequest, ...] = Field(
        default=(), strict=False, description="Parts of the finished image that are found and drawn over."
    )
    reproducible: bool = Field(
        default=False, description="The same bytes for the same request, whatever load shares the device."
    )
    dynamic_prompts: bool = Field(
        default=False,
        description="Whether prompts have variants, {red|blue}, and wildcards, __colours__; the seed chooses.",
    )
    tiling: bool = Field(default=False, description="Whether the picture goes on at its other side, as a tile does.")
    preview: bool = Field(default=False, description="Small previews in the job's progress events.")

    def with_texts(self, changed: Callable[[str, str], str]) -> Self:
        """The request with other prompts; `changed` makes them of a prompt's field and its text."""
        update: dict[str, Any] = _texts(self, PROMPTS, "", changed)
        if self.hires is not None:
            update["hires"] = self.hires.model_copy(update=_texts(self.hires, OWN_PROMPTS, "hires.", changed))
        for kind, fields in (("details", OWN_PROMPTS), ("regions", ("prompt",))):
            update[kind] = tuple(
                one.model_copy(update=_texts(one, fields, f"{kind}.{index}.", changed))
                for index, one in enumerate(getattr(self, kind))
            )
        return self.model_copy(update=update)

    def without_comments(self) -> Self:
        """The request with prompts in which a "#" begins a comment."""
        return self.with_texts(lambda _, text: without_comments(text))


def _texts(
    part: RequestPart, fields: tuple[str, ...], before: str, changed: Callable[[str, str], str]
) -> dict[str, str]:
    return {field: changed(f"{before}{field}", text) for field in fields if (text := getattr(part, field))}
