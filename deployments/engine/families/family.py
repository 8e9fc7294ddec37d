"""What the engine and the front have to know of a family of checkpoints, as data. Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from deployments.engine.types import LATENT_SCALE, DenoiseRequest

# as settings say it; written out for pydantic and mypy
FamilyName = Literal["sd15", "sd2", "sdxl", "sdxl-refiner"]
# what a UNet is trained to give, as in scheduler_config.json
PredictionType = Literal["epsilon", "v_prediction"]
# what a number of SDXL's size conditions is (arXiv:2307.01952, 2.2)
TimeId = Literal[
    "original_height", "original_width", "crop_top", "crop_left", "target_height", "target_width", "aesthetic_score"
]
ScheduleValue = int | float | str | bool | None
PUBLISHED = Path(__file__).with_name("published")
# of every Stable Diffusion that was trained so far
BETAS: Mapping[str, ScheduleValue] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "steps_offset": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoderComponent:
    """One text encoder of a family.

    Attributes:
        folder: in diffusers' layout, and its name in LoRA files.
        tokenizer: folder of its tokenizer.
        class_name: transformers' class.
        prefix: of its tensors in a single file.
        open_clip: whether these have open_clip's names, not transformers'.
    """

    folder: Literal["text_encoder", "text_encoder_2"]
    tokenizer: Literal["tokenizer", "tokenizer_2"]
    class_name: Literal["CLIPTextModel", "CLIPTextModelWithProjection"]
    prefix: str
    open_clip: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Family:
    """A family: checkpoints of one architecture.

    Attributes:
        pipeline: diffusers' class.
        inpainting_pipeline: likewise, for UNets that take a mask and the image under it as five further channels; None
            if there are none.
        distilled_pipeline: likewise, for UNets that take the guidance as a condition.
        text_encoders: in the order in which their hidden states are joined.
        scheduler: scheduler_config.json of the published checkpoint.
        inpainting_predicts: what the published inpainting UNets predict, if it isn't what the scheduler says.
        specifications: what a checkpoint predicts by its `modelspec.architecture`, where that says it.
        corrects_scheduler: whether diffusers' pipelines of this family correct steps_offset 0 and clip_sample true.
        linear_projections: whether the UNet's config.json must have use_linear_projection; if false, it may.
        text_layer: the text encoder's layer that the UNet was trained on, counted from the last, which is 1 and has the
            final norm; clip_skip counts from there.
        embedding_parts: encoders for which a textual inversion has vectors.
        time_ids: what the UNet takes of an image's size, beside the pooled embedding; empty if it takes neither.
        zeroes_empty_negative: whether an empty negative prompt becomes zeros if model_index.json doesn't say.
        latent_channels: of the VAE.
        latent_scale: pixels of a latent cell's side.
        upcasts_vae: whether diffusers' pipelines of this family heed the VAE's force_upcast.
        refined_by: the family that may finish its images.
        refines: whether it finishes another family's images and begins none; its UNet takes the last channels of that
            family's text embeddings.
    """

    name: FamilyName

    pipeline: str
    inpainting_pipeline: str | None = None
    distilled_pipeline: str | None = None
    text_encoders: tuple[TextEncoderComponent, ...]
    scheduler: Mapping[str, ScheduleValue]
    inpainting_predicts: PredictionType | None = None
    specifications: Mapping[str, PredictionType] = field(default_factory=dict)
    corrects_scheduler: bool = False
    linear_projections: bool = False

    text_layer: int = 1
    embedding_parts: int = 1
    time_ids: tuple[TimeId, ...] = ()
    zeroes_empty_negative: bool = False

    latent_channels: int = 4
    latent_scale: int = LATENT_SCALE
    upcasts_vae: bool = True

    refined_by: "Family | None" = None
    refines: bool = False

    @property
    def pipelines(self) -> tuple[str, ...]:
        """Every class that a checkpoint's model_index.json may name; the usual one first."""
        return tuple(filter(None, (self.pipeline, self.inpainting_pipeline, self.distilled_pipeline)))

    @property
    def published(self) -> Path:
        """The folder of the published checkpoint's configurations, which describes a single file."""
        return PUBLISHED / self.name

    @property
    def addition_embed_type(self) -> str | None:
        """As in the UNet's config.json."""
        return "text_time" if self.time_ids else None

    @property
    def own_text_encoders(self) -> tuple[TextEncoderComponent, ...]:
        """Those that texts for it are encoded with: of a refiner none, its images come with their texts encoded."""
        return () if self.refines else self.text_encoders

    def size_condition(self, request: DenoiseRequest, *, negative: bool) -> list[float]:
        """The values of `time_ids` for a request's prompt, or for its negative prompt."""
        values: Mapping[TimeId, float] = {
            "original_height": request.height,
            "original_width": request.width,
            "crop_top": 0,
            "crop_left": 0,
            "target_height": request.height,
            "target_width": request.width,
            "aesthetic_score": request.negative_aesthetic_score if negative else request.aesthetic_score,
        }
        return [float(values[name]) for name in self.time_ids]
