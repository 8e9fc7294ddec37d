"""The samplers' names: canonical ones, AUTOMATIC1111's labels, diffusers' class names.

Only names; the tables are in samplers.py. No torch here, so that the front can check a request without it.
"""

from deployments.engine.errors import UnknownSampler

# canonical name -> (A1111's label, aliases). A1111's labels as of 1.10, where Karras is spelled both ways.
NAMES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ddim": ("DDIM", ("DDIMScheduler",)),
    "ddpm": ("DDPM", ("DDPMScheduler",)),
    "pndm": ("PNDM", ("PLMS", "PNDMScheduler")),
    "euler": ("Euler", ("k_euler", "EulerDiscreteScheduler")),
    "euler_a": ("Euler a", ("k_euler_a", "euler ancestral", "EulerAncestralDiscreteScheduler")),
    "heun": ("Heun", ("k_heun", "HeunDiscreteScheduler")),
    "dpmpp_2m": ("DPM++ 2M", ("k_dpmpp_2m", "DPMSolverMultistepScheduler")),
    "dpmpp_2m_karras": ("DPM++ 2M Karras", ("k_dpmpp_2m_ka",)),
    "dpmpp_2m_sde": ("DPM++ 2M SDE", ("k_dpmpp_2m_sde",)),
    "dpmpp_2m_sde_karras": ("DPM++ 2M SDE Karras", ("k_dpmpp_2m_sde_ka",)),
    "dpmpp_2s": ("DPM++ 2S", ("DPMSolverSinglestepScheduler",)),
    "unipc": ("UniPC", ("UniPCMultistepScheduler",)),
    "deis": ("DEIS", ("DEISMultistepScheduler",)),
    "lms": ("LMS", ("k_lms", "LMSDiscreteScheduler")),
    "kdpm2": ("DPM2", ("k_dpm_2", "KDPM2DiscreteScheduler")),
    "kdpm2_a": ("DPM2 a", ("k_dpm_2_a", "KDPM2AncestralDiscreteScheduler")),
    "lcm": ("LCM", ("LCMScheduler",)),
    "tcd": ("TCD", ("TCDScheduler",)),
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
        raise UnknownSampler(f"unknown sampler {name[:64]!r}; known: {', '.join(NAMES)}", "scheduler") from None
