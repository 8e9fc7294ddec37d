"""AUTOMATIC1111's names for our models and samplers, both ways."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from deployments.engine.errors import UnknownCheckpoint, UnknownSampler
from deployments.engine.samplers.registry import (
    DIFFUSERS_PREFIX,
    SAMPLERS,
    WEBUI_SAMPLERS,
    WEBUI_SCHEDULES,
    canonical,
    fold,
    split,
)
from serve_app.config.settings import Settings
from serve_app.images.infotext import HIRES_LABELS

# schedules by A1111's and Forge's names -> labels. What "automatic" is, its sampler says.
SCHEDULES = {
    "automatic": "Automatic",
    "uniform": "Uniform",
    **{name: label for name, label in WEBUI_SCHEDULES.items() if not name.endswith("_xl")},
}

# further spellings
_SCHEDULE_ALIASES = {
    "": "automatic",
    "none": "automatic",
    "use same scheduler": "automatic",
    "sgmuniform": "sgm_uniform",
    "discrete": "uniform",  # stable-diffusion.cpp's
    "ays": "align_your_steps",
    "gits": "align_your_steps_gits",
    "ddim uniform": "ddim",  # ComfyUI's
}
_SCHEDULES_BY_NAME = {
    **_SCHEDULE_ALIASES,
    **{fold(spelling): name for name, label in SCHEDULES.items() for spelling in (name, label)},
}

# the web UI's samplers, by all that it and others call them
_WEBUI_BY_NAME = {
    fold(spelling): name
    for name, sampler in WEBUI_SAMPLERS.items()
    for spelling in (name, name.removeprefix("webui_"), sampler.label, *sampler.aliases)
}

# diffusers' name of a schedule -> A1111's, of those that a sampler's name can say
_OF_DIFFUSERS = {"karras": "karras", "exponential": "exponential", "sgm_uniform": "trailing", "beta": "beta"}

# what the files of A1111's own upscalers are called, without what _plain leaves out
_UPSCALER_FILES = {
    "resrgan4x+": ("realesrganx4plus",),
    "resrgan4x+anime6b": ("realesrganx4plusanime6b",),
    "resrgan2x+": ("realesrganx2plus",),
    "resrgangeneral4xv3": ("realesrgeneralx4v3",),
    "resrgangeneralwdn4xv3": ("realesrgeneralwdnx4v3",),
    "resrgananimevideo": ("realesranimevideov3",),
    "swinir4x": ("swinir4x",),
}

# upscalers that come with A1111, or that presets name as if they did
_PRESET_UPSCALERS = frozenset(
    {
        *_UPSCALER_FILES,
        "4xultrasharp",
        "4xultrasharpv10",
        "4xnmkdsuperscalesp178000g",
        "8xnmkdsuperscale150000g",
        "4xnmkdsiax200k",
        "4xfoolhardyremacri",
        "remacri",
        "4xremacri",
        "4xanimesharp",
        "4xvalar",
        "4xrealisticrescaler100000g",
        "esrgan4x",
        "datx2",
        "datx3",
        "datx4",
        "ldsr",
        "scunet",
        "scunetpsnr",
        "scunetgan",
    }
)

# sd_vae of a model's own
OWN_VAE = ("", "Automatic", "None")

# "name.safetensors [0123456789]"
_DECORATION = re.compile(r"(?:\.safetensors|\.ckpt)?(?:\s*\[[0-9a-f]{0,64}\])?$", re.ASCII | re.IGNORECASE)


class NamedUpscaler(NamedTuple):
    """An upscaler of ours, None where none is named, and what is to be said of it."""

    name: str | None
    warning: str | None = None


class NamedSampler(NamedTuple):
    """A canonical sampler, None where none is named, and what is to be said of it."""

    name: str | None
    warnings: tuple[str, ...] = ()


def sampler_of(name: str | None, schedule: str | None, *, xl: bool = False) -> NamedSampler:
    """The sampler that A1111's sampler and schedule mean: k-diffusion's, as A1111 has it. xl: of an SDXL model.

    A schedule that isn't known, or that the sampler has no use for, is left out there; here with a warning. Raises
    UnknownSampler.
    """
    chosen = _SCHEDULES_BY_NAME.get(fold(schedule or ""))
    warnings = []
    if chosen is None:
        warnings.append(
            f"scheduler {ascii(schedule)[:64]} is unknown: Automatic is taken; known: {', '.join(SCHEDULES)}"
        )
        chosen = "automatic"
    if not name:
        return NamedSampler(None, tuple(warnings))
    folded = fold(name)
    webui, of_name = _split_name(folded)
    if webui is None:
        is_named_so = folded.startswith(DIFFUSERS_PREFIX)
        return _of_diffusers(name.strip()[len(DIFFUSERS_PREFIX) :] if is_named_so else name, chosen, warnings)
    sampler = WEBUI_SAMPLERS[webui]
    wanted = of_name or (sampler.automatic or "uniform" if chosen == "automatic" else chosen)
    if not sampler.schedules:
        if chosen != "automatic":
            warnings.append(f"{sampler.label} has noise levels of its own: scheduler {SCHEDULES[chosen]} has no effect")
        return NamedSampler(webui, tuple(warnings))
    if wanted == "uniform":
        return NamedSampler(webui, tuple(warnings))
    wanted += "_xl" if xl and wanted.startswith("align_your_steps") else ""
    return NamedSampler(f"{webui}_{wanted}", tuple(warnings))


def _split_name(folded: str) -> tuple[str | None, str | None]:
    """The web UI's sampler that a name means, and the schedule that it ends with."""
    if folded in _WEBUI_BY_NAME:
        return _WEBUI_BY_NAME[folded], None
    for ending, schedule in (*_SCHEDULES_BY_NAME.items(), ("ka", "karras")):
        if ending and folded.endswith(f" {ending}") and folded.removesuffix(f" {ending}") in _WEBUI_BY_NAME:
            return _WEBUI_BY_NAME[folded.removesuffix(f" {ending}")], schedule
    return None, None


def _of_diffusers(name: str, schedule: str, warnings: list[str]) -> NamedSampler:
    """The same of samplers that only diffusers has, and of those that are named as diffusers'."""
    try:
        named = canonical(name)
    except UnknownSampler as error:
        raise UnknownSampler(error.message, "sampler_name") from None
    if schedule in ("automatic", "uniform"):
        return NamedSampler(named, tuple(warnings))
    sampler, _ = split(named)
    wanted = _OF_DIFFUSERS.get(schedule)
    if wanted not in SAMPLERS[sampler].schedules:
        warnings.append(f"{SAMPLERS[sampler].label} has no {SCHEDULES[schedule]} schedule here: its own is taken")
        return NamedSampler(named, tuple(warnings))
    return NamedSampler(f"{sampler}_{wanted}", tuple(warnings))


def upscaler_of(label: str | None, models: Sequence[str]) -> NamedUpscaler:
    """The upscaler of A1111's label; `models` are those of the folder.

    One that everybody's presets name is Lanczos where its model isn't in the folder; another unknown one stays, to be
    refused.
    """
    if not label:
        return NamedUpscaler(None)
    wanted = label.strip().lower()
    for name, known in HIRES_LABELS.items():
        if wanted in (name, known.lower()):
            return NamedUpscaler(name)
    if wanted == "none":
        return NamedUpscaler("lanczos")  # A1111 scales so where no upscaler is named
    spellings = {_plain(label), *_UPSCALER_FILES.get(_plain(label), ())}
    found = label if label in models else next((model for model in models if _plain(model) in spellings), None)
    if found is None and _plain(label) in _PRESET_UPSCALERS:
        return NamedUpscaler("lanczos", f"there is no upscaler {ascii(label)[:64]} here: Lanczos is taken")
    return NamedUpscaler(found or label)


def _plain(name: str) -> str:
    """Letters and digits of a name, by which A1111's and the files' names are the same more often."""
    return "".join(character for character in name.lower() if character.isalnum() or character == "+")


def vae_of(title: str, vaes: Sequence[str]) -> str | None:
    """The VAE that a file's name means, with its ending or without; None if there is none such."""
    wanted = _DECORATION.sub("", title.strip()).lower()
    return next((name for name in vaes if name.lower() in (wanted, title.strip().lower())), None)


def model_of(title: str, settings: Settings, field: str) -> str:
    """The model that a title means: case, file endings and hashes don't matter.

    Refiners are models too: whether one may be used is for the request to say. Raises UnknownCheckpoint.
    """
    wanted = _DECORATION.sub("", title.strip()).lower()
    for name in settings.models:
        if name.lower() == wanted:
            return name
    known = ", ".join(settings.generating())
    raise UnknownCheckpoint(f"{field} is {ascii(title)[:64]}, no model here; models: {known}", field)
