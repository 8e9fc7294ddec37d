"""Settings of a checkpoint: the part of the catalogue that the engine reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from deployments.engine.checkpoints.single_file_header import SingleFileHeader, family_of
from deployments.engine.config import Section
from deployments.engine.errors import CheckpointError
from deployments.engine.families.family import FamilyName, PredictionType
from deployments.engine.memory.limits import AllowedSizes


class SchedulerSettings(Section):
    """Overrides of a checkpoint's scheduler configuration, for one that lacks an entry or has a wrong one."""

    prediction_type: PredictionType | None = Field(default=None, examples=["v_prediction"])
    """What the UNet predicts: "epsilon" (the noise) or "v_prediction". It counts before what a single file says."""
    timestep_spacing: Literal["leading", "linspace", "trailing"] | None = Field(default=None, examples=["trailing"])
    """How the timesteps are spaced. Checkpoints distilled to few steps (Lightning, Turbo) need "trailing"."""
    rescale_betas_zero_snr: bool | None = Field(default=None, examples=[True])
    """Rescale the schedule to zero terminal SNR (arXiv:2305.08891). Needs v_prediction, and timestep_spacing trailing
    or linspace."""

    @model_validator(mode="after")
    def _zero_snr_is_whole(self) -> "SchedulerSettings":
        if self.rescale_betas_zero_snr and self.prediction_type != "v_prediction":
            raise ValueError("rescale_betas_zero_snr needs prediction_type v_prediction")
        if self.rescale_betas_zero_snr and self.timestep_spacing not in ("trailing", "linspace"):
            raise ValueError("rescale_betas_zero_snr needs timestep_spacing trailing (or linspace)")
        return self

    def over(self, config: dict[str, Any]) -> dict[str, Any]:
        """A scheduler_config.json, changed by these settings."""
        said = self.model_dump(exclude_none=True)
        unsaid = [key for key in config.get("_use_default_values", ()) if key not in said]
        return config | said | ({"_use_default_values": unsaid} if "_use_default_values" in config else {})

    def completed(self, header: SingleFileHeader) -> "tuple[SchedulerSettings, tuple[str, ...]]":
        """These settings with what a single file says where they say nothing.

        Returns:
            The settings, and as sentences what the file's word is in conflict with.
        """
        doubts = list(header.doubts)
        prediction, zero_snr = header.prediction_type, header.zero_snr
        if prediction is not None and self.prediction_type not in (None, prediction):
            doubts.append(
                f"{header.said_by} says {prediction}, scheduler.prediction_type says {self.prediction_type}: "
                "the setting counts"
            )
        prediction = self.prediction_type or prediction
        against = {
            "prediction_type": prediction != "v_prediction",
            "rescale_betas_zero_snr": self.rescale_betas_zero_snr is False,
            "timestep_spacing": self.timestep_spacing == "leading",
        }
        doubts += [
            f"it was trained with zero terminal SNR (its tensor ztsnr), and scheduler.{name} is {getattr(self, name)}: "
            "the setting counts"
            for name, differs in against.items()
            if zero_snr and differs and name != "prediction_type"  # said already
        ]
        said: dict[str, Any] = {"prediction_type": prediction}
        if zero_snr and not any(against.values()):
            said |= {"rescale_betas_zero_snr": True, "timestep_spacing": self.timestep_spacing or "trailing"}
        return SchedulerSettings(**self.model_dump(exclude_none=True) | said), tuple(doubts)


class CheckpointSpec(Section):
    """A checkpoint's source."""

    family: FamilyName
    """Architecture of the checkpoint. A refiner can't be requested by itself. For a .safetensors file that lies where
    the settings are read it may be left out: the file's tensors say it."""
    source: str = Field(min_length=1, examples=["stable-diffusion-v1-5/stable-diffusion-v1-5"])
    """A diffusers folder, a hub id ("owner/name"), a .safetensors file, or "package:<package>/<folder>"."""
    revision: str | None = Field(default=None, examples=["main"])
    """Revision of a hub id: a branch, a tag or a commit."""
    variant: str | None = Field(default=None, examples=["fp16"])
    """Variant of the weight files, as in diffusers: "fp16" loads *.fp16.safetensors."""
    config: str | None = Field(default=None, examples=["stabilityai/stable-diffusion-xl-base-1.0"])
    """For a single file of an unusual architecture: a diffusers folder or hub id that describes it."""
    vae: str | None = Field(default=None, examples=["madebyollin/sdxl-vae-fp16-fix"])
    """Source of another VAE in place of the checkpoint's own, such as one that is safe in float16."""
    scheduler: SchedulerSettings = SchedulerSettings()
    """Overrides of the checkpoint's scheduler configuration."""

    @model_validator(mode="before")
    @classmethod
    def _family_of_file(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "family" in values or not isinstance(values.get("source"), str):
            return values
        try:
            return {**values, "family": family_of(values["source"])}
        except (CheckpointError, OSError) as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True, slots=True)
class AddedCheckpoint:
    """A checkpoint that was added at run time: no stage's settings name it, so it travels with its requests.

    Its name there was never another one's, so that a stage needs to look at this only when it meets the name first.

    Attributes:
        spec: its source.
        allowed: the sizes of images that it may draw.
    """

    spec: CheckpointSpec
    allowed: AllowedSizes
