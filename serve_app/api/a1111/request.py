"""AUTOMATIC1111's txt2img and img2img requests, and what they ask of us.

Unknown keys are ignored, as A1111's clients expect, and values are taken loosely ("20" is 20). What would change the
picture and can't be done (tiling, subseeds, scripts, …) is refused rather than left out in silence.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from deployments.engine.errors import InvalidRequest
from deployments.engine.families.registry import FAMILIES
from deployments.engine.samplers.registry import is_webui, options_of
from serve_app.api.a1111.controlnet import units_of
from serve_app.api.a1111.names import NamedSampler, model_of, sampler_of, upscaler_of
from serve_app.api.errors import fields_named
from serve_app.config.settings import OutputFormat, Settings
from serve_app.images.infotext import OWN_HIRES_SAMPLER, OWN_SAMPLER, parse_infotext
from serve_app.schemas.generation_request import GenerationRequest
from serve_app.schemas.validation import validated

# native field -> A1111's
NATIVE_NAMES = {
    "guidance_scale": "cfg_scale",
    "clip_skip": "CLIP_stop_at_last_layers",
    "n": "batch_size",
    "scheduler": "sampler_name",
    "model": "sd_model_checkpoint",
    "refiner": "refiner_checkpoint",
    "refiner.switch_at": "refiner_switch_at",
    "loras": "prompt",
    "controlnets": "alwayson_scripts",
    "image": "init_images",
    "strength": "denoising_strength",
    "hires": "hr_scale",
    "hires.scale": "hr_scale",
    "hires.width": "hr_resize_x",
    "hires.height": "hr_resize_y",
    "hires.upscaler": "hr_upscaler",
    "hires.strength": "denoising_strength",
    "hires.steps": "hr_second_pass_steps",
    "hires.sampler": "hr_sampler_name",
    "inpaint.blur": "mask_blur",
    "inpaint.padding": "inpaint_full_res_padding",
}

# infotext's key -> the request's field that it stands for
_OF_INFOTEXT = {
    "Prompt": "prompt",
    "Negative prompt": "negative_prompt",
    "Steps": "steps",
    "Sampler": "sampler_name",
    "Schedule type": "scheduler",
    "CFG scale": "cfg_scale",
    "Seed": "seed",
    "Size-1": "width",
    "Size-2": "height",
    "Refiner": "refiner_checkpoint",
    "Refiner switch at": "refiner_switch_at",
    "Denoising strength": "denoising_strength",
    "Hires upscale": "hr_scale",
    "Hires resize-1": "hr_resize_x",
    "Hires resize-2": "hr_resize_y",
    "Hires steps": "hr_second_pass_steps",
    "Hires upscaler": "hr_upscaler",
    "Hires sampler": "hr_sampler_name",
    "Hires schedule type": "hr_scheduler",
    "Eta": "eta",
    "Eta DDIM": "eta",
    "Sigma churn": "s_churn",
    "Sigma tmin": "s_tmin",
    "Sigma tmax": "s_tmax",
    "Sigma noise": "s_noise",
    OWN_SAMPLER: "sampler_name",
    OWN_HIRES_SAMPLER: "hr_sampler_name",
}

# numbers of samplers -> what A1111 takes by itself
_OWN_OPTIONS: Mapping[str, float] = {"eta": 1.0, "s_churn": 0.0, "s_tmin": 0.0, "s_tmax": 0.0, "s_noise": 1.0}

_FILE_TYPES: dict[str, OutputFormat] = {"png": "png", "jpg": "jpeg", "jpeg": "jpeg", "webp": "webp"}


class _Loose(BaseModel):
    """Unknown keys are ignored, null is as good as nothing."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class A1111Options(_Loose):
    """What is read of options and override_settings."""

    sd_model_checkpoint: str | None = None
    samples_format: Literal["png", "jpg", "jpeg", "webp"] | None = None
    CLIP_stop_at_last_layers: int | None = Field(default=None, ge=1, le=64)
    sd_vae: str | None = None

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


class _Overrides(A1111Options):
    """Options of one request, which is drawn with all of them or not at all."""

    @model_validator(mode="after")
    def _can_be_done(self) -> Self:
        if self.sd_vae not in (None, "", "Automatic", "None"):
            raise InvalidRequest("sd_vae can't be chosen: a model's VAE is in the service's settings", "sd_vae")
        return self


class A1111TextToImage(_Loose):
    """The body of POST /sdapi/v1/txt2img, as far as it is read."""

    prompt: str = ""
    negative_prompt: str | None = None
    seed: int | None = Field(default=None, description="-1 draws one.")
    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    batch_size: int | None = Field(default=None, ge=1)
    n_iter: int | None = Field(default=None, ge=1)
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    eta: float | None = Field(default=None, description="Of samplers that have one, as s_churn and the others.")
    s_churn: float | None = None
    s_tmin: float | None = None
    s_tmax: float | None = Field(default=None, description="0 is none.")
    s_noise: float | None = None
    refiner_checkpoint: str | None = None
    refiner_switch_at: float | None = None
    override_settings: dict[str, Any] | None = None
    override_settings_restore_afterwards: bool | None = None
    send_images: bool | None = None
    force_task_id: str | None = Field(default=None, max_length=256)
    infotext: str | None = Field(default=None, description="Of another image; fills what the request leaves open.")
    enable_hr: bool | None = None
    hr_scale: float = 2.0
    hr_resize_x: int = 0
    hr_resize_y: int = 0
    hr_upscaler: str | None = None
    hr_second_pass_steps: int = Field(default=0, description="0: as many as steps.")
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_checkpoint_name: str | None = None
    hr_prompt: str | None = None
    hr_negative_prompt: str | None = None
    denoising_strength: float | None = Field(default=None, description="Of the second pass, 0.75 by itself.")
    tiling: bool | None = None
    restore_faces: bool | None = None
    subseed_strength: float | None = None
    script_name: str | None = None
    alwayson_scripts: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_infotext(cls, body: dict[str, Any]) -> dict[str, Any]:
        body = {name: value for name, value in body.items() if value is not None}
        infotext = body.get("infotext")
        return {**_from_infotext(infotext), **body} if isinstance(infotext, str) else body

    @model_validator(mode="after")
    def _can_be_done(self) -> Self:
        for name in ("tiling", "restore_faces", "subseed_strength", "script_name"):
            if getattr(self, name):
                raise InvalidRequest(f"{name} isn't supported here: leave it out", name)
        return self

    @property
    def overrides(self) -> A1111Options:
        """Options of this request alone. Raises InvalidRequest."""
        return validated(_Overrides, self.override_settings or {})

    def generation(self, settings: Settings, chosen: A1111Options) -> GenerationRequest:
        """The native request; `chosen` stands for what this one leaves open. Raises InvalidRequest."""
        fields = self._fields(settings, chosen)
        with fields_named(NATIVE_NAMES):
            return validated(GenerationRequest, {name: value for name, value in fields.items() if value is not None})

    def _fields(self, settings: Settings, chosen: A1111Options) -> dict[str, Any]:
        overrides = self.overrides
        fields: dict[str, Any] = {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "model": overrides.model(settings) or chosen.sd_model_checkpoint,
            "n": (self.batch_size or 1) * (self.n_iter or 1),
            "seed": None if self.seed == -1 else self.seed,
            "steps": self.steps,
            "guidance_scale": self.cfg_scale,
            "width": self.width,
            "height": self.height,
            "output_format": overrides.output_format or chosen.output_format,
            "preview": True,
            "controlnets": units_of(self.alwayson_scripts or {}),
        }
        drawn_by = fields["model"] or settings.default_model
        samplers = self._samplers(settings, drawn_by)
        fields["scheduler"] = samplers[0].name
        fields |= self._sampler_options([sampler.name for sampler in samplers if sampler.name is not None])
        clip_skip = overrides.clip_skip(settings, drawn_by)
        fields["clip_skip"] = chosen.clip_skip(settings, drawn_by) if clip_skip is None else clip_skip
        fields["refiner"] = self._refiner(settings, drawn_by)
        fields["hires"] = self._hires(settings, drawn_by) if self.enable_hr else None
        return fields

    def warnings(self, settings: Settings, model: str | None) -> list[str]:
        """What A1111 would draw otherwise, or draws otherwise than the request says. model: as for `generation`."""
        drawn_by = self.overrides.model(settings) or model or settings.default_model
        samplers = self._samplers(settings, drawn_by)
        warnings = [warning for sampler in samplers for warning in sampler.warnings]
        names = [sampler.name for sampler in samplers if sampler.name is not None]
        taken = self._sampler_options(names)
        for name, neutral in _OWN_OPTIONS.items():
            value = getattr(self, name)
            # a sampler of A1111's that has no such number ignores it there, too
            if value not in (None, neutral) and name not in taken and not all(map(is_webui, names or ["none"])):
                warnings.append(f"{name} is of no use with this sampler: it has no effect")
        return list(dict.fromkeys(warnings))

    def _samplers(self, settings: Settings, model: str) -> list[NamedSampler]:
        """The first pass's, and the second one's where there is one. Raises UnknownSampler."""
        of_xl = len(FAMILIES[settings.models[model].family].text_encoders) > 1
        name = self.sampler_name or self.sampler_index
        samplers = [sampler_of(name, self.scheduler, xl=of_xl)]
        if self.enable_hr:
            hr_name, hr_schedule = self.hr_sampler_name, self.hr_scheduler
            schedule = self.scheduler if hr_schedule in (None, "", "Use same scheduler") else hr_schedule
            own_name = hr_name not in (None, "", "Use same sampler")
            samplers.append(sampler_of(hr_name if own_name else name, schedule, xl=of_xl))
        return samplers

    def _sampler_options(self, samplers: Sequence[str]) -> dict[str, float]:
        """What is said to these samplers, as far as they have it; others ignore it, as in A1111."""
        had = {option for sampler in samplers for option in options_of(sampler)}
        given = {name: getattr(self, name) for name in _OWN_OPTIONS if name in had}
        if given.get("s_tmax") == 0:
            given["s_tmax"] = None
        return {name: value for name, value in given.items() if value is not None}

    def _hires(self, settings: Settings, model: str) -> dict[str, Any]:
        """The second pass in native words. Raises InvalidRequest for what a second pass can't have of its own."""
        for name, first in (("hr_prompt", self.prompt), ("hr_negative_prompt", self.negative_prompt)):
            if getattr(self, name) not in (None, "", first):
                raise InvalidRequest(f"{name} isn't supported: the second pass uses the first one's prompts", name)
        checkpoint = self.hr_checkpoint_name
        if checkpoint and checkpoint != "Use same checkpoint":
            wanted = model_of(checkpoint, settings, "hr_checkpoint_name")
            if wanted != model:
                raise InvalidRequest(f"hr_checkpoint_name is {wanted}: both passes are {model}'s", "hr_checkpoint_name")
        size = {"width": self.hr_resize_x or None, "height": self.hr_resize_y or None}
        asked: dict[str, Any] = {
            **size,
            "scale": None if any(size.values()) else self.hr_scale,
            "upscaler": upscaler_of(self.hr_upscaler),
            "strength": 0.75 if self.denoising_strength is None else self.denoising_strength,
            "steps": self.hr_second_pass_steps or None,
            "sampler": self._samplers(settings, model)[1].name,
        }
        return {name: value for name, value in asked.items() if value is not None}

    def _refiner(self, settings: Settings, model: str) -> dict[str, float] | bool | None:
        """None leaves it to the model: one that has a refiner in the settings is finished by it."""
        own = settings.models[model].refiner
        switch_at = {"switch_at": self.refiner_switch_at} if self.refiner_switch_at else None  # 0 is A1111's "unset"
        if self.refiner_checkpoint == "None" or self.refiner_switch_at == 1:
            return False
        if self.refiner_checkpoint:
            wanted = model_of(self.refiner_checkpoint, settings, "refiner_checkpoint")
            if wanted != own:
                raise InvalidRequest(
                    f"refiner_checkpoint is {wanted}; what refines {model} is {own or 'nothing'}", "refiner_checkpoint"
                )
            return switch_at or True
        return None if own is None else switch_at  # clients send a refiner_switch_at along with every model


class A1111ImageToImage(A1111TextToImage):
    """The body of POST /sdapi/v1/img2img, as far as it is read."""

    init_images: list[str] = Field(default_factory=list, description="One image as base64 or a data URL.")
    mask: str | None = Field(default=None, description="Likewise; white is painted anew.")
    denoising_strength: float | None = 0.75
    mask_blur: int = 4
    inpainting_fill: int = Field(default=1, description="0 or 1: from what the image shows there.")
    inpaint_full_res: bool = Field(default=True, description="Only masked.")
    inpaint_full_res_padding: int = 0
    inpainting_mask_invert: bool = False
    resize_mode: int = Field(default=0, description="0: just resize.")
    initial_noise_multiplier: float | None = None
    include_init_images: bool = False

    @model_validator(mode="after")
    def _image_can_be_drawn_over(self) -> Self:
        if len(self.init_images) != 1:
            raise InvalidRequest(f"init_images holds {len(self.init_images)} images: send one", "init_images")
        for name, known in (
            ("resize_mode", (0,)),
            ("initial_noise_multiplier", (None, 1)),
            ("inpainting_fill", (0, 1)),
        ):
            value = getattr(self, name)
            if value not in known and (name != "inpainting_fill" or self.mask is not None):
                raise InvalidRequest(f"{name} {value:g} isn't supported here: leave it out", name)
        return self

    def _fields(self, settings: Settings, chosen: A1111Options) -> dict[str, Any]:
        fields = super()._fields(settings, chosen)
        fields |= {"image": self.init_images[0], "mask": self.mask, "strength": self.denoising_strength}
        if not self.refiner_checkpoint:  # a switch alone, which clients send with every model, asks for none
            fields["refiner"] = None
        if self.mask is not None:
            fields["inpaint"] = {
                "blur": self.mask_blur,
                "invert": self.inpainting_mask_invert,
                "only_masked": self.inpaint_full_res,
                "padding": self.inpaint_full_res_padding,
            }
        return fields

    def repeated(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body as the answer repeats it: without its pictures, unless the client wants them."""
        return dict(body) if self.include_init_images else {**body, "init_images": None, "mask": None}


def _from_infotext(text: str) -> dict[str, Any]:
    found = parse_infotext(text)
    fields: dict[str, Any] = {field: found[key] for key, field in _OF_INFOTEXT.items() if found.get(key)}
    if "hr_upscaler" in fields:
        fields["enable_hr"] = True
    overrides = {"Model": "sd_model_checkpoint", "Clip skip": "CLIP_stop_at_last_layers"}
    if found.keys() & overrides:
        fields["override_settings"] = {name: found[key] for key, name in overrides.items() if key in found}
    return fields
