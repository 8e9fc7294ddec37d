"""What AUTOMATIC1111's requests ask of us: native requests, and what A1111 would do otherwise or without a word.

What would change the picture and can't be done is refused; what A1111 leaves out where it isn't there (LoRAs, styles,
face restoration, …) is left out here, too, and said, unless a1111.strict is set.
"""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from deployments.engine.errors import InvalidRequest, UnknownSampler
from deployments.engine.families.registry import FAMILIES
from deployments.engine.samplers.registry import WEBUI_SAMPLERS, is_webui, options_of, split
from serve_app.api.a1111 import adetailer, dynamic_prompts
from serve_app.api.a1111.controlnet import SCRIPTS
from serve_app.api.a1111.freeu import freeu_of
from serve_app.api.a1111.names import OWN_VAE, NamedSampler, model_of, sampler_of, upscaler_of, vae_of
from serve_app.api.a1111.options import A1111Options
from serve_app.api.a1111.prompts import PromptReader, styles_of
from serve_app.api.a1111.request import NATIVE_NAMES, A1111ImageToImage, A1111TextToImage
from serve_app.api.a1111.scripts import check_selected, steering_of
from serve_app.api.errors import fields_named
from serve_app.config.models import SIZE_STEP
from serve_app.config.settings import Settings
from serve_app.images.infotext import DETAILER
from serve_app.planning.resolve import DRAWN_SEEDS
from serve_app.schemas.generation_request import GenerationRequest
from serve_app.schemas.validation import shown, validated

# numbers of samplers -> what A1111 takes by itself
_OWN_OPTIONS = {"eta": 1.0, "s_churn": 0.0, "s_tmin": 0.0, "s_tmax": 0.0, "s_noise": 1.0}

# resize modes and masked contents, by their numbers
_FITS = ("stretch", "crop", "extend", "latent")
_FILLS = ("blur", "original", "noise", "nothing")

_STRENGTH = 0.75

# of a second pass that changes next to nothing: one step of the longest schedule
_LONGEST_SCHEDULE = 1000
_LEAST_STRENGTH = 1 / _LONGEST_SCHEDULE

_WITH_FIRST = re.compile(r"(?:use )?same .*|none|", re.IGNORECASE)


class Folders(NamedTuple):
    """The names in the service's folders."""

    loras: Sequence[str] = ()
    upscalers: Sequence[str] = ()
    detectors: Sequence[str] = ()
    vaes: Sequence[str] = ()


class Translation(NamedTuple):
    """A native request, and what is to be said of it."""

    request: GenerationRequest
    warnings: tuple[str, ...]


def translated(
    body: A1111TextToImage, settings: Settings, options: A1111Options, chosen_model: str | None, folders: Folders
) -> Translation:
    """The native request. A ControlNet's mask is decoded for it: call it in a thread.

    Args:
        body: of the request.
        settings: with the models that the caller may use.
        options: of the request, over those that the caller has chosen.
        chosen_model: by the caller; None for the service's own.
        folders: what LoRAs, upscalers, detectors and VAEs there are.

    Raises:
        InvalidRequest: what can't be drawn, under A1111's name of the field.
    """
    model = options.model(settings) or chosen_model or settings.default_model
    translator = _Translator(body, settings, options, model, folders)
    fields = translator.fields()
    with fields_named(NATIVE_NAMES):
        request = validated(GenerationRequest, {name: value for name, value in fields.items() if value is not None})
    return Translation(request, tuple(dict.fromkeys(translator.warnings)))


@dataclass(slots=True)
class _Translator:
    """One request; `model` draws it, `warnings` grow while its fields are read."""

    body: A1111TextToImage
    settings: Settings
    options: A1111Options
    model: str
    folders: Folders
    warnings: list[str] = field(default_factory=list)

    def fields(self) -> dict[str, Any]:
        """The native fields, None for what is left open. Raises InvalidRequest."""
        body, options = self.body, self.options
        check_selected(body.script_name)
        self._check_left_out()
        samplers = self._samplers()
        reader, scripts = self._reader(), dict(body.alwayson_scripts or {})
        details, freeu = self._details(scripts, reader), freeu_of(scripts, self._left_out, self.warnings)
        varied = dynamic_prompts.asked_for(scripts, self._left_out)
        fields: dict[str, Any] = {
            "prompt": reader.prompt(body.prompt, self.warnings),
            "negative_prompt": reader.negative(body.negative_prompt or "", self.warnings),
            "model": self.model,
            "n": body.images,
            "seed": None if body.seed == -1 else body.seed,
            "steps": body.steps,
            "guidance_scale": body.cfg_scale,
            "width": self._side("width", body.width),
            "height": self._side("height", body.height),
            "output_format": options.output_format,
            "preview": True,
            "tiling": bool(options.tiling if body.tiling is None else body.tiling),
            "details": details,
            "freeu": freeu,
            "dynamic_prompts": varied,
            **steering_of(scripts, self.settings.limits.max_image_pixels),
            "scheduler": samplers[0].name,
            "clip_skip": options.clip_skip(self.settings, self.model),
            "refiner": self._refiner(),
            "noise_seed_delta": options.eta_noise_seed_delta or None,
            "vae": self._vae(),
            **self._noise(),
            **self._sampler_options(samplers),
        }
        if isinstance(body, A1111ImageToImage):
            return fields | self._image(body, samplers[0])
        return fields | {"hires": self._hires(reader, samplers[1]) if body.enable_hr else None}

    def _check_left_out(self) -> None:
        """Say, or refuse, what A1111 does without where it hasn't got it. Raises InvalidRequest."""
        body, options = self.body, self.options
        if body.restore_faces or (body.restore_faces is None and options.face_restoration):
            self._left_out("restore_faces", "restore_faces has no effect: there is no face restorer here")

    def _vae(self) -> str | None:
        """The VAE that is chosen; None for the model's own, which A1111 takes too where it can't find one."""
        chosen = self.options.sd_vae
        if chosen is None or chosen in OWN_VAE:
            return None
        name = vae_of(chosen, self.folders.vaes)
        if name is None:
            known = ", ".join(self.folders.vaes) or "none"
            self._left_out(
                "sd_vae", f"there is no sd_vae {shown(chosen)} here: the model's own is taken; known: {known}"
            )
        return name

    def _left_out(self, field: str, why: str) -> None:
        if self.settings.a1111.strict:
            raise InvalidRequest(why, field)
        self.warnings.append(why)

    def _reader(self) -> PromptReader:
        known, found = self.settings.a1111.styles, list[str]()
        styles = styles_of(self.body.styles, known, found)
        for why in found:
            self._left_out("styles", why)
        comments = self.options.enable_prompt_comments is not False
        return PromptReader(styles, comments, self.folders.loras, self.settings.a1111.strict)

    def _side(self, name: str, value: int | None) -> int | None:
        """Pixels; what is no multiple of 8 is cut, as the latents are in A1111."""
        if value is None or value % SIZE_STEP == 0 or value < SIZE_STEP:
            return value
        cut = value - value % SIZE_STEP
        self.warnings.append(f"{name} {shown(value)} is no multiple of {SIZE_STEP}: {cut} is drawn")
        return cut

    def _noise(self) -> dict[str, Any]:
        """The second seed, and the size that the first noise is for."""
        body = self.body
        width, height = body.seed_resize_from_w or 0, body.seed_resize_from_h or 0
        fields: dict[str, Any] = {}
        if width >= SIZE_STEP and height >= SIZE_STEP:
            fields = {"noise_width": width - width % SIZE_STEP, "noise_height": height - height % SIZE_STEP}
        if body.subseed_strength:
            drawn = body.subseed is None or body.subseed == -1
            fields["variation_seed"] = secrets.randbelow(DRAWN_SEEDS) if drawn else body.subseed
            fields["variation_strength"] = body.subseed_strength
        return fields

    def _samplers(self) -> list[NamedSampler]:
        """The first pass's, and the second one's where there is one. Raises UnknownSampler."""
        body = self.body
        name = body.sampler_name or body.sampler_index
        samplers = [self._sampler(name, body.scheduler)]
        if body.enable_hr:
            own, schedule = body.hr_sampler_name or "", body.hr_scheduler or ""
            schedule = (body.scheduler or "") if _WITH_FIRST.fullmatch(schedule) else schedule
            samplers.append(self._sampler(name if _WITH_FIRST.fullmatch(own) else own, schedule))
        self.warnings += [warning for sampler in samplers for warning in sampler.warnings]
        return samplers

    def _sampler(self, name: str | None, schedule: str | None) -> NamedSampler:
        """By its name here, for the request's model. Raises UnknownSampler."""
        of_xl = len(FAMILIES[self.settings.models[self.model].family].text_encoders) > 1
        return sampler_of(name, schedule, xl=of_xl)

    def _sampler_options(self, samplers: Sequence[NamedSampler]) -> dict[str, float]:
        """What is said to these samplers, as far as they have it; others ignore it, as in A1111."""
        names = [sampler.name for sampler in samplers if sampler.name is not None]
        had = {option for name in names for option in options_of(name)}
        said: dict[str, float] = {}
        for option, neutral in _OWN_OPTIONS.items():
            value = getattr(self.body, option)
            # a sampler of A1111's that has no such number ignores it there, too
            if value not in (None, neutral) and option not in had and not all(map(is_webui, names or ["none"])):
                self.warnings.append(f"{option} is of no use with this sampler: it has no effect")
            if value is None:
                value = self._own_option(option, names)
            if value is not None and option in had and (option, value) != ("s_tmax", 0):
                said[option] = value
        return said

    def _own_option(self, option: str, samplers: Sequence[str]) -> float | None:
        """What the caller has chosen for a number that its request leaves open."""
        if option != "eta":
            chosen: float | None = getattr(self.options, option)
            return chosen
        known = [WEBUI_SAMPLERS[split(name)[0]] for name in samplers if is_webui(name)]
        of_timesteps = any(sampler.levels == "ddim" for sampler in known)
        return self.options.eta_ddim if of_timesteps else self.options.eta_ancestral

    def _hires(self, reader: PromptReader, sampler: NamedSampler) -> dict[str, Any]:
        """The second pass in native words. Raises InvalidRequest for what a second pass can't have of its own."""
        body = self.body
        checkpoint, model = body.hr_checkpoint_name or "", None
        if not _WITH_FIRST.fullmatch(checkpoint):
            model = model_of(checkpoint, self.settings, "hr_checkpoint_name")
        width, height = (self._side(name, getattr(body, name)) or None for name in ("hr_resize_x", "hr_resize_y"))
        strength = _STRENGTH if body.denoising_strength is None else min(body.denoising_strength, 1.0)
        steps = body.hr_second_pass_steps or None
        if 0 <= strength < _LEAST_STRENGTH:  # as good as none, which A1111 makes of it
            strength = _LEAST_STRENGTH
        taken = steps or body.steps or self.settings.models[self.model].defaults.steps
        most = max(1, int(_LONGEST_SCHEDULE * strength + 1e-6))
        if taken > most and strength > 0:  # A1111 takes as many in the same stretch of noise
            steps = most
            self.warnings.append(f"denoising_strength {strength:g} leaves {most} steps of the second pass")
        upscaler = upscaler_of(body.hr_upscaler, self.folders.upscalers)
        if upscaler.warning is not None:
            self._left_out("hr_upscaler", upscaler.warning)
        hires: dict[str, Any] = {
            "width": width,
            "height": height,
            "scale": None if width or height else body.hr_scale,
            "upscaler": upscaler.name,
            "strength": strength,
            "steps": steps,
            "sampler": sampler.name,
            "model": model,
            "prompt": reader.prompt(body.hr_prompt, self.warnings) if body.hr_prompt else None,
            "negative_prompt": reader.negative(body.hr_negative_prompt, self.warnings)
            if body.hr_negative_prompt
            else None,
        }
        return {name: value for name, value in hires.items() if value is not None}

    def _details(self, scripts: dict[str, Any], reader: PromptReader) -> list[dict[str, Any]]:
        """The details that ADetailer's tabs ask for; its script is taken out of the others where there are detectors.

        Raises InvalidRequest.
        """
        body, details = self.body, list[dict[str, Any]]()
        named = [name for name in scripts if name.lower() == adetailer.SCRIPT]
        if self.settings.detectors.folder is None or not named:
            return details
        image = adetailer.OfImage(
            self._side("width", body.width),
            self._side("height", body.height),
            body.prompt,
            body.negative_prompt or "",
        )
        for script in map(scripts.pop, named):
            tabs = adetailer.tabs_of(script)
            if tabs and isinstance(body, A1111ImageToImage) and adetailer.skips_image(script):
                self._left_out(SCRIPTS, f"{SCRIPTS}.{DETAILER}: skip img2img isn't supported here")
            for tab in tabs:
                detector = tab.model(self.folders.detectors)
                if detector is None:
                    known = ", ".join(self.folders.detectors) or "none"
                    why = f"{SCRIPTS}.{DETAILER}: there is no ad_model {shown(tab.ad_model)} here; known: {known}"
                    self._left_out(SCRIPTS, why)
                    continue
                detail = adetailer.detail_of(tab, detector, image, self._left_out)
                details.append(self._completed(detail, tab, reader))
        return details

    def _completed(self, detail: dict[str, Any], tab: adetailer.ADetailerTab, reader: PromptReader) -> dict[str, Any]:
        """A detail with its sampler and with its texts as they are drawn. Raises UnknownSampler."""
        body, defaults = self.body, self.settings.models[self.model].defaults
        name = body.sampler_name or body.sampler_index
        chosen = tab.sampler(name, body.scheduler)
        try:
            named = self._sampler(*(chosen or (name, body.scheduler)))
        except UnknownSampler as error:
            raise UnknownSampler(f"{SCRIPTS}.{DETAILER}: {error.message}", SCRIPTS) from None
        if chosen is not None:
            detail["sampler"] = named.name
            self.warnings += named.warnings
        for text, read in (("prompt", reader.prompt), ("negative_prompt", reader.negative)):
            if text in detail:
                detail[text] = read(detail[text], self.warnings)
        steps = detail.get("steps") or body.steps or defaults.steps
        least = _LEAST_STRENGTH if is_webui(named.name or defaults.sampler) else 1 / max(1, steps) + 1e-9
        return detail | {"strength": max(detail["strength"], least)}  # a step at least, as A1111 takes

    def _refiner(self) -> dict[str, float] | bool | None:
        """None leaves it to the model: one that has a refiner in the settings is finished by it."""
        body, own = self.body, self.settings.models[self.model].refiner
        switch_at = {"switch_at": body.refiner_switch_at} if body.refiner_switch_at else None  # 0 is A1111's "unset"
        if body.refiner_checkpoint == "None" or body.refiner_switch_at == 1:
            return False
        if body.refiner_checkpoint:
            wanted = model_of(body.refiner_checkpoint, self.settings, "refiner_checkpoint")
            if wanted != own:
                raise InvalidRequest(
                    f"refiner_checkpoint is {wanted}; what refines {self.model} is {own or 'nothing'}",
                    "refiner_checkpoint",
                )
            return switch_at or True
        return None if own is None else switch_at  # clients send a refiner_switch_at along with every model

    def _image(self, body: A1111ImageToImage, sampler: NamedSampler) -> dict[str, Any]:
        """What only a request from an image has. Raises InvalidRequest."""
        if len(body.init_images) != 1:
            raise InvalidRequest(
                f"init_images holds {len(body.init_images)} images: send one, or as many as batch_size", "init_images"
            )
        if body.initial_noise_multiplier not in (None, 1):
            raise InvalidRequest(
                f"initial_noise_multiplier {body.initial_noise_multiplier:g} isn't supported here: leave it out",
                "initial_noise_multiplier",
            )
        fields: dict[str, Any] = {
            "image": body.init_images[0],
            "mask": body.mask,
            "strength": self._strength(body, sampler),
            "fit": _of_number("resize_mode", body.resize_mode, _FITS),
        }
        if not body.refiner_checkpoint:  # a switch alone, which clients send with every model, asks for none
            fields["refiner"] = None
        if body.mask is not None:
            if fields["fit"] == "latent":
                fields["fit"] = "stretch"
                self.warnings.append("resize_mode 3 isn't there with a mask: 0 is taken")
            fields["inpaint"] = {
                "blur": body.mask_blurs[0] if body.blurs_evenly else 0,  # uneven ones are in the mask by now
                "invert": body.inpainting_mask_invert,
                "only_masked": body.inpaint_full_res,
                "padding": body.inpaint_full_res_padding,
                "fill": _of_number("inpainting_fill", body.inpainting_fill, _FILLS),
            }
        return fields

    def _strength(self, body: A1111ImageToImage, sampler: NamedSampler) -> float | None:
        """Of the image; A1111 takes a step at least, which a sampler of diffusers' needs 1 / steps for."""
        if body.denoising_strength is None:
            return None
        strength = min(body.denoising_strength, 1.0)
        name = sampler.name or self.settings.models[self.model].defaults.sampler
        steps = body.steps or self.settings.models[self.model].defaults.steps
        return strength if is_webui(name) or steps < 1 else max(strength, 1 / steps + 1e-9)


def _of_number(field: str, value: int, known: Sequence[str]) -> str:
    if not 0 <= value < len(known):
        raise InvalidRequest(f"{field} is {shown(value)}, outside 0..{len(known) - 1}", field)
    return known[value]
