"""Where a checkpoint comes from and what it is: the part of the catalogue that the engine reads.

Plain settings; no torch here, so that a process without a device can read them too.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from deployments.engine.config import Section

Family = Literal["sd15", "sdxl", "sdxl-refiner"]


class SchedulerSettings(Section):
    """What a checkpoint was trained for, where its own scheduler configuration doesn't say it, or says it wrong.

    prediction_type: what the UNet's output is: "epsilon" (the noise) or "v_prediction".
    timestep_spacing: where the steps lie: "leading", "linspace" or "trailing". Checkpoints distilled to few steps
        (Lightning, Turbo) want "trailing".
    rescale_betas_zero_snr: the schedule begins with nothing but noise (zero terminal SNR, arXiv:2305.08891). Wants a
        UNet that predicts v, and steps that begin at the schedule's beginning.
    """

    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    timestep_spacing: Literal["leading", "linspace", "trailing"] | None = None
    rescale_betas_zero_snr: bool | None = None

    @model_validator(mode="after")
    def _zero_snr_is_whole(self) -> "SchedulerSettings":
        if self.rescale_betas_zero_snr and self.prediction_type != "v_prediction":
            raise ValueError("rescale_betas_zero_snr needs prediction_type v_prediction: noise tells no noise apart")
        if self.rescale_betas_zero_snr and self.timestep_spacing not in ("trailing", "linspace"):
            raise ValueError("rescale_betas_zero_snr needs timestep_spacing trailing (or linspace)")
        return self

    def over(self, config: dict[str, Any]) -> dict[str, Any]:
        """A scheduler_config.json with what is said here in place of what it says."""
        said = self.model_dump(exclude_none=True)
        unsaid = [key for key in config.get("_use_default_values", ()) if key not in said]
        return config | said | ({"_use_default_values": unsaid} if "_use_default_values" in config else {})


class CheckpointSpec(Section):
    """A checkpoint's source.

    source: a diffusers folder, a hub id ("owner/name"), a single .safetensors file, or
        "package:<package>/<folder>" for a folder inside an installed package (the demo models).
    revision, variant: as in diffusers ("fp16" picks *.fp16.safetensors).
    config: for a single file, a diffusers folder or hub id that describes its architecture; without it the
        family's published one is used.
    vae: a source of another VAE (an fp16-safe one, say) in place of the checkpoint's own.
    scheduler: what is to be said in place of its scheduler configuration.
    """

    family: Family
    source: str = Field(min_length=1)
    revision: str | None = None
    variant: str | None = None
    config: str | None = None
    vae: str | None = None
    scheduler: SchedulerSettings = SchedulerSettings()
