"""A job's operation with all defaults filled in: stored with the job, it gives the same images again."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from deployments.engine.parameters import DenoisingParameters
from deployments.engine.samplers.registry import second_pass_steps, taken_steps
from deployments.engine.types import LatentUpscaler
from serve_app.config.settings import OutputFormat, SafetyMode
from serve_app.schemas.generation_request import (
    LATENT_UPSCALERS,
    PIXEL_UPSCALERS,
    ControlSettings,
    DetailSettings,
    ImageFit,
    InpaintRequest,
    LoraRequest,
    PriorityName,
    RegionSettings,
    SteeringSettings,
)


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


class ImageInput(InpaintRequest, _Stored):
    """The picture that a generation begins with; its pixels are stored beside the job.

    Attributes:
        sha256, mask_sha256: of the request's files, hex.
        strength: fraction of the schedule that runs.
        masked: whether a part of it is kept.
        fit: how it is brought to the size that is drawn.
        outpaint: pixels by which it is extended: left, top, right, bottom.
    """

    sha256: str
    mask_sha256: str | None = None
    strength: float
    masked: bool = False
    fit: ImageFit = "stretch"
    outpaint: tuple[int, int, int, int] | None = None


class OwnTexts(_Stored):
    """The texts of a pass that may have its own; None for the generation's.

    Attributes:
        loras: likewise, where the prompt or the model is another one.
    """

    prompt: str | None = None
    negative_prompt: str | None = None
    loras: tuple[LoraRequest, ...] | None = None

    def texts(self, guided: bool) -> dict[str, Any]:
        """The fields of a TextEncodingRequest that differ from the generation's; an own text is both encoders'."""
        own = {"prompt": self.prompt} | ({"negative_prompt": self.negative_prompt} if guided else {})
        texts = {field: text for field, text in own.items() if text is not None}
        return texts | {f"{field}_2": None for field in texts}


class HiresInput(OwnTexts):
    """The second pass of a generation.

    Attributes:
        upscaler: one of LATENT_UPSCALERS or PIXEL_UPSCALERS, or a model's name.
        strength: fraction of the schedule that runs.
        steps: of the whole schedule.
        sampler: a canonical name.
        model: that draws it; None for the first pass's.
    """

    width: int
    height: int
    upscaler: str
    strength: float
    steps: int
    sampler: str
    model: str | None = None

    @property
    def taken_steps(self) -> int:
        """Inference steps that run."""
        return second_pass_steps(self.sampler, self.steps, self.strength)

    @property
    def latent_upscaler(self) -> LatentUpscaler | None:
        """The upscaler, if it is one of latents."""
        return next((known for known in LATENT_UPSCALERS if known == self.upscaler), None)

    @property
    def upscaler_model(self) -> str | None:
        """The upscaler, if it is a model."""
        return None if self.upscaler in (*LATENT_UPSCALERS, *PIXEL_UPSCALERS) else self.upscaler


class DetailInput(DetailSettings, OwnTexts):
    """Parts of a generation's finished image that are found and drawn over.

    Attributes:
        steps: of the whole schedule.
        sampler: a canonical name.
        width, height: at which a part is drawn.
    """

    steps: int
    guidance_scale: float
    sampler: str
    width: int
    height: int

    @property
    def taken_steps(self) -> int:
        """Inference steps that run."""
        return taken_steps(self.sampler, self.steps, self.strength)

    @property
    def lanes(self) -> int:
        """Most lanes of an image."""
        return self.max_count if self.combine == "each" else 1


class ControlInput(ControlSettings, _Stored):
    """A ControlNet that steers a generation; its picture is stored beside the job, `sha256` is the file's."""

    model: str
    sha256: str


class ReferenceInput(SteeringSettings, _Stored):
    """A reference picture of a generation; it and its mask are stored beside the job.

    Attributes:
        sha256, mask_sha256: of the request's files, hex.
        patches, channels: of the picture's features, as in the engine's ReferencePicture.
    """

    model: str
    sha256: str
    mask_sha256: str | None
    patches: bool
    channels: int


class RegionInput(RegionSettings, _Stored):
    """A part of a generation's image; its mask, in place of a box, is stored beside the job.

    `loras` are the request's and its prompt's.

    Attributes:
        mask_sha256: of the request's file, hex.
    """

    mask_sha256: str | None = None


class PromptTexts(_Stored):
    """The texts of a generation, as in TextEncodingRequest."""

    prompt: str
    negative_prompt: str = ""
    prompt_2: str | None = None
    negative_prompt_2: str | None = None
    clip_skip: int = 0

    def texts(self) -> dict[str, Any]:
        """These fields by name, without those of subclasses."""
        return {name: getattr(self, name) for name in PromptTexts.model_fields}

    @property
    def prompts(self) -> tuple[str, ...]:
        """All texts, as they were written."""
        texts = (self.prompt, self.negative_prompt, self.prompt_2, self.negative_prompt_2)
        return tuple(text for text in texts if text is not None)


class ResolvedJob(_Stored):
    """The fields of every job.

    Attributes:
        safety: the stricter of the request's and the service's mode.
        ingredients: number of the request's pictures that the images' credentials name.
    """

    output_format: OutputFormat
    priority: PriorityName
    timeout_s: float
    safety: SafetyMode
    ingredients: int = 0


class ResolvedGeneration(PromptTexts, ResolvedJob, DenoisingParameters):
    """Images to draw.

    Attributes:
        model: of the catalogue.
        pinned: hashes that the weights of models must have, by the model's name.
        seed: of the first image.
        refiner, switch_at: the refining model, and the fraction of the schedule at which it takes over.
        loras: the model's, the request's and the prompts', each name once.
        controlnets, references: without those of scale 0.
        base_weight: of the prompt where regions are.
        vae: of all passes, in place of their models' own.
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
    references: tuple[ReferenceInput, ...] = ()
    regions: tuple[RegionInput, ...] = ()
    base_weight: float = 0.0
    vae: str | None = None
    details: tuple[DetailInput, ...] = ()
    pinned: dict[str, str] = {}

    @property
    def steered(self) -> bool:
        """Whether there are ControlNets, references or regions."""
        return bool(self.controlnets or self.references or self.regions)

    @property
    def steering_pictures(self) -> int:
        """Pictures stored beside the job, besides the one that it begins with.

        Each ControlNet's, then each reference's and its mask's, then regions' masks.
        """
        of_references = [reference.mask_sha256 for reference in self.references]
        masks = [*of_references, *(region.mask_sha256 for region in self.regions)]
        return len(self.controlnets) + len(self.references) + len(masks) - masks.count(None)

    @property
    def prompts(self) -> tuple[str, ...]:
        """All texts, as they were written, the second pass's, regions' and details' too."""
        passes: list[OwnTexts] = [*([] if self.hires is None else [self.hires]), *self.details]
        own = (text for one in passes for text in (one.prompt, one.negative_prompt) if text is not None)
        return (*super().prompts, *own, *(region.prompt for region in self.regions))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image: with a variation all have the first one's, as in A1111."""
        return (self.seed,) * self.n if self.variation_strength else tuple(range(self.seed, self.seed + self.n))

    @property
    def variation_seeds(self) -> tuple[int, ...]:
        """The seed of each image's variation."""
        step = 1 if self.variation_strength else 0
        return tuple(self.variation_seed + step * image for image in range(self.n))

    @property
    def taken_steps(self) -> int:
        """Inference steps that run: a strength leaves out the first ones."""
        return self.steps if self.image is None else taken_steps(self.sampler, self.steps, self.image.strength)


class ResolvedUpscale(ResolvedJob):
    """A picture to enlarge, which is stored beside the job.

    Attributes:
        sha256: of the request's file, hex.
        upscaler: "lanczos", or a name of the upscalers' folder.
        source_width, source_height: of the picture.
        width, height: of the result.
        parameters: the infotext in the picture's file; empty for none, or one that is too long to be kept.
    """

    operation: Literal["upscale"] = "upscale"
    sha256: str
    upscaler: str
    source_width: int
    source_height: int
    width: int
    height: int
    parameters: str = ""

    @property
    def n(self) -> int:
        """Images of the job."""
        return 1

    @property
    def prompts(self) -> tuple[str, ...]:
        """None: there is no text."""
        return ()


Operation = ResolvedGeneration | ResolvedUpscale


def read_operation(stored: Mapping[str, Any]) -> Operation:
    """The operation of a job's stored request. Raises ValueError (pydantic's ValidationError)."""
    if stored.get("operation") == "upscale":
        return ResolvedUpscale.model_validate(stored)
    return ResolvedGeneration.model_validate(stored)
