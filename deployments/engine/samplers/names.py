"""The samplers' names: canonical ones, AUTOMATIC1111's labels, diffusers' class names.

A name may end with a schedule: how the noise levels lie between the most and the least noise. Without one it is the
checkpoint's own. Only names; the tables are in samplers.py. No torch here, so that the front can check a request
without it.
"""

from deployments.engine.errors import UnknownSampler

# canonical name -> (A1111's label, aliases). A1111's labels as of 1.10, where Karras is spelled both ways.
SAMPLER_NAMES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ddim": ("DDIM", ("DDIMScheduler",)),
    "ddpm": ("DDPM", ("DDPMScheduler",)),
    "pndm": ("PNDM", ("PLMS", "PNDMScheduler")),
    "euler": ("Euler", ("k_euler", "EulerDiscreteScheduler")),
    "euler_a": ("Euler a", ("k_euler_a", "euler ancestral", "EulerAncestralDiscreteScheduler")),
    "heun": ("Heun", ("k_heun", "HeunDiscreteScheduler")),
    "dpmpp_2m": ("DPM++ 2M", ("k_dpmpp_2m", "DPMSolverMultistepScheduler")),
    "dpmpp_2m_sde": ("DPM++ 2M SDE", ("k_dpmpp_2m_sde",)),
    "dpmpp_2s": ("DPM++ 2S", ("DPMSolverSinglestepScheduler",)),
    "unipc": ("UniPC", ("UniPCMultistepScheduler",)),
    "deis": ("DEIS", ("DEISMultistepScheduler",)),
    "lms": ("LMS", ("k_lms", "LMSDiscreteScheduler")),
    "kdpm2": ("DPM2", ("k_dpm_2", "KDPM2DiscreteScheduler")),
    "kdpm2_a": ("DPM2 a", ("k_dpm_2_a", "KDPM2AncestralDiscreteScheduler")),
    "lcm": ("LCM", ("LCMScheduler",)),
    "tcd": ("TCD", ("TCDScheduler",)),
}

# canonical schedule -> A1111's label
SCHEDULES: dict[str, str] = {
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "trailing": "SGM Uniform",
}

# samplers whose schedule is fixed, wholly or but for trailing
_ONLY_THEIR_OWN = ("lcm", "tcd")
_ONLY_TRAILING = ("ddim", "ddpm", "pndm", "euler_a")
_NOT_TRAILING = ("dpmpp_2s",)

# samplers that honour a checkpoint's zero terminal SNR; the others would leave some of the image in the noise
ZERO_SNR_SAMPLERS = frozenset({"ddim", "ddpm", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "lcm", "tcd"})


def schedules_of(sampler: str) -> tuple[str, ...]:
    """The schedules that a sampler (canonical, without one) can be given."""
    if sampler in _ONLY_THEIR_OWN:
        return ()
    if sampler in _ONLY_TRAILING:
        return ("trailing",)
    return tuple(one for one in SCHEDULES if one != "trailing" or sampler not in _NOT_TRAILING)


def _aliases(name: str, schedule: str) -> tuple[str, ...]:
    """Those of a sampler with a schedule."""
    horde = [f"{alias}_ka" for alias in SAMPLER_NAMES[name][1] if alias.startswith("k_") and schedule == "karras"]
    plain = [f"{SAMPLER_NAMES[name][0]} Trailing"] if schedule == "trailing" else []
    return (*horde, *plain)


# every canonical name, those with a schedule included -> (label, aliases)
NAMES: dict[str, tuple[str, tuple[str, ...]]] = SAMPLER_NAMES | {
    f"{name}_{schedule}": (f"{label} {SCHEDULES[schedule]}", _aliases(name, schedule))
    for name, (label, _) in SAMPLER_NAMES.items()
    for schedule in schedules_of(name)
}


def _fold(name: str) -> str:
    return name.strip().lower().replace("_", " ").replace("-", " ")


_BY_ALIAS = {
    _fold(alias): canonical for canonical, (label, aliases) in NAMES.items() for alias in (canonical, label, *aliases)
}


def canonical(name: str) -> str:
    """The canonical name for any accepted spelling (case, "_" and "-" don't matter).

    Raises UnknownSampler, naming what is known.
    """
    try:
        return _BY_ALIAS[_fold(name)]
    except KeyError:
        raise UnknownSampler(
            f"unknown sampler {name[:64]!r}; known: {', '.join(SAMPLER_NAMES)}; "
            f"most of them also with {', '.join(f'_{schedule}' for schedule in SCHEDULES)}",
            "scheduler",
        ) from None


def split(name: str) -> tuple[str, str | None]:
    """A canonical name's sampler, and its schedule if it says one."""
    sampler, _, schedule = name.rpartition("_")
    return (sampler, schedule) if schedule in SCHEDULES else (name, None)
