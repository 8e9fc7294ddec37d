"""AUTOMATIC1111's names for our models and samplers, both ways."""

import re

from deployments.engine.errors import InvalidRequest, UnknownCheckpoint, UnknownSampler
from deployments.engine.samplers.registry import NAMES, SAMPLERS, canonical, split
from serve_app.config.settings import Settings
from serve_app.images.infotext import HIRES_LABELS

# A1111's schedules that we have: name -> label. What "automatic" is, its sampler says.
SCHEDULES = {
    "automatic": "Automatic",
    "uniform": "Uniform",
    "karras": "Karras",
    "exponential": "Exponential",
    "sgm_uniform": "SGM Uniform",
    "beta": "Beta",
}

# A1111's name -> ours, of those that a sampler's name can say
_OURS = {"karras": "karras", "exponential": "exponential", "sgm_uniform": "trailing", "beta": "beta"}

# samplers whose own schedule is Karras's in A1111 since 1.9
_KARRAS_BY_ITSELF = ("dpmpp_2m",)

# "name.safetensors [0123456789]"
_DECORATION = re.compile(r"(?:\.safetensors|\.ckpt)?(?:\s*\[[0-9a-f]{0,64}\])?$", re.ASCII | re.IGNORECASE)


def sampler_of(name: str | None, schedule: str | None) -> str | None:
    """The canonical sampler for A1111's sampler and schedule; None where no sampler is named.

    Raises UnknownSampler, and InvalidRequest for a schedule that isn't one or that the sampler can't have.
    """
    chosen = (schedule or "automatic").strip().lower().replace(" ", "_")
    if chosen in ("", "none", "use_same_scheduler", "normal"):  # "normal" is ComfyUI's, and SillyTavern's by default
        chosen = "automatic"
    if chosen not in SCHEDULES:
        raise InvalidRequest(f"scheduler is {ascii(schedule)[:64]}; known: {', '.join(SCHEDULES)}", "scheduler")
    if not name:
        return None
    try:
        named = canonical(name)
    except UnknownSampler as error:
        raise UnknownSampler(error.message, "sampler_name") from None
    sampler, by_name = split(named)
    if chosen == "automatic":
        return f"{named}_karras" if named in _KARRAS_BY_ITSELF else named
    wanted = _OURS.get(chosen, by_name)
    if wanted is None:
        return sampler
    if wanted not in SAMPLERS[sampler].schedules:
        having = ", ".join(sampler.label for sampler in SAMPLERS.values() if wanted in sampler.schedules)
        label = label_of(sampler)
        raise InvalidRequest(f"{label} has no {SCHEDULES[chosen]} schedule here; {having} have", "scheduler")
    return f"{sampler}_{wanted}"


def upscaler_of(label: str | None) -> str | None:
    """Our upscaler for A1111's label, None for none; what is no label may be a model's name."""
    if not label:
        return None
    wanted = label.strip().lower()
    for name, known in HIRES_LABELS.items():
        if wanted in (name, known.lower()):
            return name
    if wanted == "none":
        return "lanczos"  # A1111 scales so where no upscaler is named
    return label


def label_of(sampler: str) -> str:
    """A1111's label of a canonical sampler."""
    return NAMES[sampler][0]


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
