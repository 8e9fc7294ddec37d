"""AUTOMATIC1111's txt2img and img2img requests as they are read; translation.py says what they ask of us.

Unknown keys are ignored, as A1111's clients expect, and values are taken loosely ("20" and 20.0 are 20).
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from serve_app.api.a1111.adetailer import script_of_infotext
from serve_app.api.a1111.options import Loose, Switch, Whole
from serve_app.images.infotext import DETAILER, OWN_HIRES_SAMPLER, OWN_SAMPLER, parse_infotext

# native field -> A1111's
NATIVE_NAMES = {
    "guidance_scale": "cfg_scale",
    "clip_skip": "CLIP_stop_at_last_layers",
    "n": "batch_size",
    "scheduler": "sampler_name",
    "model": "sd_model_checkpoint",
    "vae": "sd_vae",
    "refiner": "refiner_checkpoint",
    "refiner.switch_at": "refiner_switch_at",
    "loras": "prompt",
    "controlnets": "alwayson_scripts",
    "references": "alwayson_scripts",
    "details": "alwayson_scripts",
    "freeu": "alwayson_scripts",
    "dynamic_prompts": "alwayson_scripts",
    "image": "init_images",
    "strength": "denoising_strength",
    "fit": "resize_mode",
    "hires": "hr_scale",
    "hires.scale": "hr_scale",
    "hires.width": "hr_resize_x",
    "hires.height": "hr_resize_y",
    "hires.upscaler": "hr_upscaler",
    "hires.strength": "denoising_strength",
    "hires.steps": "hr_second_pass_steps",
    "hires.sampler": "hr_sampler_name",
    "hires.model": "hr_checkpoint_name",
    "hires.prompt": "hr_prompt",
    "hires.negative_prompt": "hr_negative_prompt",
    "inpaint": "mask",
    "inpaint.blur": "mask_blur",
    "inpaint.padding": "inpaint_full_res_padding",
    "inpaint.fill": "inpainting_fill",
    "variation_seed": "subseed",
    "variation_strength": "subseed_strength",
    "noise_width": "seed_resize_from_w",
    "noise_height": "seed_resize_from_h",
    "noise_seed_delta": "eta_noise_seed_delta",
    "output_format": "samples_format",
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
    "Variation seed": "subseed",
    "Variation seed strength": "subseed_strength",
    "Seed resize from-1": "seed_resize_from_w",
    "Seed resize from-2": "seed_resize_from_h",
    "Tiling": "tiling",
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
    "Hires checkpoint": "hr_checkpoint_name",
    "Hires sampler": "hr_sampler_name",
    "Hires schedule type": "hr_scheduler",
    "Hires prompt": "hr_prompt",
    "Hires negative prompt": "hr_negative_prompt",
    "Eta": "eta",
    "Eta DDIM": "eta",
    "Sigma churn": "s_churn",
    "Sigma tmin": "s_tmin",
    "Sigma tmax": "s_tmax",
    "Sigma noise": "s_noise",
    OWN_SAMPLER: "sampler_name",
    OWN_HIRES_SAMPLER: "hr_sampler_name",
}

# infotext's key -> the option
_OPTIONS_OF_INFOTEXT = {
    "Model": "sd_model_checkpoint",
    "Clip skip": "CLIP_stop_at_last_layers",
    "ENSD": "eta_noise_seed_delta",
    "VAE": "sd_vae",
}


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class A1111TextToImage(Loose):
    """The body of POST /sdapi/v1/txt2img, as far as it is read."""

    prompt: str = ""
    negative_prompt: str | None = None
    styles: Annotated[list[str], BeforeValidator(_listed)] = Field(default=[], description="Of GET prompt-styles.")
    seed: Whole | None = Field(default=None, description="-1 draws one.")
    subseed: Whole | None = Field(default=None, description="-1 draws one.")
    subseed_strength: float | None = None
    seed_resize_from_w: Whole | None = None
    seed_resize_from_h: Whole | None = None
    steps: Whole | None = None
    cfg_scale: float | None = None
    width: Whole | None = None
    height: Whole | None = None
    batch_size: Whole | None = Field(default=None, ge=1)
    n_iter: Whole | None = Field(default=None, ge=1)
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
    override_settings_restore_afterwards: Switch | None = None
    send_images: Switch | None = None
    force_task_id: str | None = Field(default=None, max_length=256)
    infotext: str | None = Field(default=None, description="Of another image; fills what the request leaves open.")
    enable_hr: Switch | None = None
    hr_scale: float = 2.0
    hr_resize_x: Whole = 0
    hr_resize_y: Whole = 0
    hr_upscaler: str | None = None
    hr_second_pass_steps: Whole = Field(default=0, description="0: as many as steps.")
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_checkpoint_name: str | None = None
    hr_prompt: str | None = Field(default=None, description="Of the second pass; empty: the first one's.")
    hr_negative_prompt: str | None = None
    denoising_strength: float | None = Field(default=None, description="Of the second pass, 0.75 by itself.")
    tiling: Switch | None = None
    restore_faces: Switch | None = None
    script_name: str | None = None
    alwayson_scripts: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_infotext(cls, body: dict[str, Any]) -> dict[str, Any]:
        body = {name: value for name, value in body.items() if value is not None}
        infotext = body.get("infotext")
        return {**fields_of_infotext(infotext), **body} if isinstance(infotext, str) else body

    @property
    def images(self) -> int:
        """How many are asked for."""
        return (self.batch_size or 1) * (self.n_iter or 1)


class A1111ImageToImage(A1111TextToImage):
    """The body of POST /sdapi/v1/img2img, as far as it is read."""

    init_images: list[str] = Field(default_factory=list, description="One image as base64 or a data URL.")
    mask: str | None = Field(
        default=None, description="Likewise; painted is what isn't transparent, or white where all is opaque."
    )
    denoising_strength: float | None = 0.75
    mask_blur: Whole | None = Field(default=None, description="4 by itself; also as mask_blur_x and mask_blur_y.")
    mask_blur_x: Whole = Field(default=4, ge=0, le=64)
    mask_blur_y: Whole = Field(default=4, ge=0, le=64)
    inpainting_fill: Whole = Field(
        default=0, description="What drawing begins with: 0 the picture's colours, 1 the picture, 2 noise, 3 nothing."
    )
    inpaint_full_res: Switch = Field(default=True, description="Only masked.")
    inpaint_full_res_padding: Whole = 0
    inpainting_mask_invert: Switch = False
    script_args: list[Any] = Field(default=[], description="Of SD upscale: nothing, overlap, upscaler, scale.")
    resize_mode: Whole = Field(default=0, description="0: just resize, 1: crop, 2: fill, 3: latents are resized.")
    initial_noise_multiplier: float | None = None
    include_init_images: Switch = False

    @property
    def mask_blurs(self) -> tuple[int, int]:
        """The radii of the mask's blur across and down, in pixels."""
        return (self.mask_blur_x, self.mask_blur_y) if self.mask_blur is None else (self.mask_blur, self.mask_blur)

    @property
    def blurs_evenly(self) -> bool:
        """Whether one radius says it."""
        across, down = self.mask_blurs
        return across == down

    def repeated(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The body as the answer repeats it: without its pictures, unless the client wants them."""
        return dict(body) if self.include_init_images else {**body, "init_images": None, "mask": None}


def fields_of_infotext(text: str) -> dict[str, Any]:
    """The body of a request for the image of that infotext, as far as it says."""
    found = parse_infotext(text)
    fields: dict[str, Any] = {field: found[key] for key, field in _OF_INFOTEXT.items() if found.get(key)}
    if "hr_upscaler" in fields:
        fields["enable_hr"] = True
    if found.keys() & _OPTIONS_OF_INFOTEXT:
        options = {name: found[key] for key, name in _OPTIONS_OF_INFOTEXT.items() if key in found}
        fields["override_settings"] = options
    script = script_of_infotext(found)
    if script is not None:
        fields["alwayson_scripts"] = {DETAILER: script}
    return fields
