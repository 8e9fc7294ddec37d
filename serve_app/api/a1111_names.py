"""AUTOMATIC1111's names for our models and samplers, both ways."""

import re

from deployments.engine.errors import InvalidRequest, UnknownCheckpoint, UnknownSampler
from deployments.engine.sampler_names import NAMES, canonical
from serve_app.settings import Settings

# A1111's schedules that we have: name -> label. What "automatic" is, its sampler says.
SCHEDULES = {"automatic": "Automatic", "uniform": "Uniform", "karras": "Karras"}

_KARRAS = "_karras"

# samplers whose own schedule is Karras's in A1111 since 1.9
_KARRAS_BY_ITSELF = ("dpmpp_2m",)

# "name.safetensors [0123456789]"
_DECORATION = re.compile(r"(?:\.safetensors|\.ckpt)?(?:\s*\[[0-9a-f]{0,64}\])?$", re.ASCII | re.IGNORECASE)


def sampler_of(name: str | None, schedule: str | None) -> str | None:
    """The canonical sampler for A1111's sampler and schedule; None where no sampler is named.

    Raises UnknownSampler, and InvalidRequest for a schedule that isn't one or that the sampler can't have.
    """
    chosen = (schedule or "automatic").strip().lower()
    if chosen in ("", "none", "use same scheduler"):
        chosen = "automatic"
    if chosen not in SCHEDULES:
        raise InvalidRequest(f"scheduler is {ascii(schedule)[:64]}; known: {', '.join(SCHEDULES)}", "scheduler")
    if not name:
        return None
    try:
        sampler = canonical(name)
    except UnknownSampler as error:
        raise UnknownSampler(error.message, "sampler_name") from None
    karras = chosen == "karras" or (chosen == "automatic" and sampler in _KARRAS_BY_ITSELF)
    if not karras or sampler.endswith(_KARRAS):
        return sampler
    if sampler + _KARRAS not in NAMES:
        having = ", ".join(label_of(known.removesuffix(_KARRAS)) for known in NAMES if known.endswith(_KARRAS))
        raise InvalidRequest(f"{label_of(sampler)} has no Karras schedule here; {having} have", "scheduler")
    return sampler + _KARRAS


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
