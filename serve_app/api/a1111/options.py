"""Options of AUTOMATIC1111's API: what the original keeps for everybody, kept here for each caller."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from deployments.engine.families.registry import FAMILIES
from serve_app.api.a1111.default_options import DEFAULT_OPTIONS
from serve_app.api.a1111.names import OWN_VAE, model_of, vae_of
from serve_app.config.settings import OutputFormat, Settings

_FILE_TYPES: dict[str, OutputFormat] = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}

# options that the service answers for: they aren't kept
_OWN = ("sd_model_checkpoint", "sd_checkpoint_hash", "grid_save", "return_grid")

_LONGEST_TEXT, _LONGEST_LIST = 256, 64


def _whole(value: Any) -> Any:
    """A whole number as A1111 takes it: what is behind the point is cut off."""
    if isinstance(value, str) and "." in value:
        try:
            value = float(value)
        except ValueError:
            return value
    return int(value) if isinstance(value, float) and abs(value) < 1 << 63 else value


def _switch(value: Any) -> Any:
    """A truth value of anything that JavaScript's clients send for one."""
    if isinstance(value, (int, float)):
        return bool(value)
    return False if value == "" else value


Whole = Annotated[int, BeforeValidator(_whole)]
Switch = Annotated[bool, BeforeValidator(_switch)]


class Loose(BaseModel):
    """Unknown keys are ignored, null is as good as nothing, numbers may be texts and texts numbers."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, coerce_numbers_to_str=True)


class A1111Options(Loose):
    """What changes a picture, of options and override_settings."""

    sd_model_checkpoint: str | None = None
    samples_format: Literal["png", "jpg", "jpeg", "webp"] | None = None
    CLIP_stop_at_last_layers: int | None = Field(default=None, ge=1, le=64)
    sd_vae: str | None = None
    enable_prompt_comments: bool | None = None
    eta_noise_seed_delta: int | None = None
    eta_ancestral: float | None = None
    eta_ddim: float | None = None
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = None
    s_noise: float | None = None
    tiling: bool | None = None
    face_restoration: bool | None = None

    @property
    def output_format(self) -> OutputFormat | None:
        """The file type that they choose."""
        return None if self.samples_format is None else _FILE_TYPES[self.samples_format]

    def clip_skip(self, settings: Settings, model: str) -> int | None:
        """In native words. Of models that weren't trained on the last layer (SDXL) it chooses nothing, as in A1111."""
        layers = self.CLIP_stop_at_last_layers
        return None if layers is None or FAMILIES[settings.models[model].family].text_layer != 1 else layers - 1

    def model(self, settings: Settings) -> str | None:
        """The model that they choose. Raises UnknownCheckpoint."""
        if not self.sd_model_checkpoint:
            return None
        return model_of(self.sd_model_checkpoint, settings, "sd_model_checkpoint")


def kept_options(posted: Mapping[str, Any], vaes: Sequence[str]) -> dict[str, Any]:
    """What is kept of posted options: those that A1111 knows, of the type that they have there, and not too long.

    Of sd_vae what can be chosen: its own words for the model's own, and the names of `vaes`.
    """
    kept = {
        key: value
        for key, value in posted.items()
        if key in DEFAULT_OPTIONS and key not in _OWN and _is_like(value, DEFAULT_OPTIONS[key])
    }
    chosen = kept.get("sd_vae", "")
    if chosen not in OWN_VAE and vae_of(chosen, vaes) is None:
        del kept["sd_vae"]
    return kept


def _is_like(value: Any, default: Any) -> bool:
    match value:
        case bool():
            return isinstance(default, bool)
        case int() | float():
            return isinstance(default, (int, float)) and not isinstance(default, bool) and abs(value) < 1 << 63
        case str():
            return (default is None or isinstance(default, str)) and len(value) <= _LONGEST_TEXT
        case list():
            texts = [text for text in value if isinstance(text, str) and len(text) <= _LONGEST_TEXT]
            return isinstance(default, list) and len(texts) == len(value) <= _LONGEST_LIST
        case _:
            return False
