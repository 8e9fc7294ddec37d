"""The samplers: one entry each, and the names by which requests find them.

To add a sampler of diffusers, add an entry to SAMPLERS and a row to tests/deployments/engine/samplers/
diffusers_schedulers.py. No torch here, so that the front can check a request without it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deployments.engine.errors import UnknownSampler

# the spacing of noise levels that a sampler's name may end with, to AUTOMATIC1111's label
SCHEDULES: Mapping[str, str] = {
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "trailing": "SGM Uniform",
}


@dataclass(frozen=True, slots=True)
class Sampler:
    """A diffusers scheduler with certain settings.

    Attributes:
        label: AUTOMATIC1111's name of it, as of 1.10.
        scheduler: name of the diffusers class.
        source: the paper or code that describes it.
        aliases: further names; the class's own name is one without being listed.
        overrides: entries of the scheduler's configuration that make it this sampler; others are the checkpoint's.
        step_arguments: arguments that diffusers' pipelines pass to `scheduler.step`.
        schedules: the SCHEDULES that may be requested for it.
        zero_snr: whether it honours a checkpoint's zero terminal SNR; others would leave a part of the image in the
            noise.
        recursive: whether its state isn't a function of a few past samples and outputs; see tracing.trace.
    """

    label: str
    scheduler: str
    source: str
    aliases: tuple[str, ...] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    step_arguments: Mapping[str, Any] = field(default_factory=dict)
    schedules: tuple[str, ...] = tuple(SCHEDULES)
    zero_snr: bool = False
    recursive: bool = False


_DPMPP_2M = {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": False}

SAMPLERS: Mapping[str, Sampler] = {
    "ddim": Sampler("DDIM", "DDIMScheduler", "arXiv:2010.02502", schedules=("trailing",), zero_snr=True),
    "ddpm": Sampler("DDPM", "DDPMScheduler", "arXiv:2006.11239", schedules=("trailing",), zero_snr=True),
    "pndm": Sampler("PNDM", "PNDMScheduler", "arXiv:2202.09778", ("PLMS",), schedules=("trailing",)),
    "euler": Sampler(
        "Euler", "EulerDiscreteScheduler", "arXiv:2206.00364, algorithm 2 without churn", ("k_euler",), zero_snr=True
    ),
    "euler_a": Sampler(
        "Euler a",
        "EulerAncestralDiscreteScheduler",
        "k-diffusion, sample_euler_ancestral",
        ("k_euler_a", "euler ancestral"),
        schedules=("trailing",),
        zero_snr=True,
    ),
    "heun": Sampler("Heun", "HeunDiscreteScheduler", "arXiv:2206.00364, algorithm 1", ("k_heun",)),
    "dpmpp_2m": Sampler(
        "DPM++ 2M",
        "DPMSolverMultistepScheduler",
        "arXiv:2211.01095, algorithm 2",
        ("k_dpmpp_2m",),
        _DPMPP_2M,
        zero_snr=True,
    ),
    "dpmpp_2m_sde": Sampler(
        "DPM++ 2M SDE",
        "DPMSolverMultistepScheduler",
        "arXiv:2211.01095, with the SDE of k-diffusion's sample_dpmpp_2m_sde",
        ("k_dpmpp_2m_sde",),
        _DPMPP_2M | {"algorithm_type": "sde-dpmsolver++"},
        zero_snr=True,
    ),
    "dpmpp_2s": Sampler(
        "DPM++ 2S",
        "DPMSolverSinglestepScheduler",
        "arXiv:2211.01095, algorithm 1",
        overrides={"algorithm_type": "dpmsolver++", "solver_order": 2, "lower_order_final": True},
        schedules=("karras", "exponential", "beta"),
    ),
    "unipc": Sampler("UniPC", "UniPCMultistepScheduler", "arXiv:2302.04867", zero_snr=True, recursive=True),
    "deis": Sampler(
        "DEIS",
        "DEISMultistepScheduler",
        "arXiv:2204.13902",
        overrides={"algorithm_type": "deis", "solver_type": "logrho"},
    ),
    "lms": Sampler("LMS", "LMSDiscreteScheduler", "k-diffusion, sample_lms", ("k_lms",)),
    "kdpm2": Sampler("DPM2", "KDPM2DiscreteScheduler", "arXiv:2206.00364 and 2206.00927", ("k_dpm_2",)),
    "kdpm2_a": Sampler(
        "DPM2 a", "KDPM2AncestralDiscreteScheduler", "k-diffusion, sample_dpm_2_ancestral", ("k_dpm_2_a",)
    ),
    "lcm": Sampler("LCM", "LCMScheduler", "arXiv:2310.04378", schedules=(), zero_snr=True),
    # pipelines give every scheduler that takes an eta their own default, 0: TCD without noise
    "tcd": Sampler("TCD", "TCDScheduler", "arXiv:2402.19159", step_arguments={"eta": 0.0}, schedules=(), zero_snr=True),
}


def _names() -> dict[str, tuple[str, tuple[str, ...]]]:
    classes: set[str] = set()
    names = {}
    for name, sampler in SAMPLERS.items():
        own_class = () if sampler.scheduler in classes else (sampler.scheduler,)
        classes.add(sampler.scheduler)
        names[name] = (sampler.label, (*sampler.aliases, *own_class))
    for name, sampler in SAMPLERS.items():
        for schedule in sampler.schedules:
            aliases = []
            if schedule == "karras":  # the AI Horde's names
                aliases = [f"{alias}_ka" for alias in sampler.aliases if alias.startswith("k_")]
            if schedule == "trailing":
                aliases = [f"{sampler.label} Trailing"]
            names[f"{name}_{schedule}"] = (f"{sampler.label} {SCHEDULES[schedule]}", tuple(aliases))
    return names


# every canonical name, with and without a schedule, to its label and aliases
NAMES: Mapping[str, tuple[str, tuple[str, ...]]] = _names()


def _fold(name: str) -> str:
    return name.strip().lower().replace("_", " ").replace("-", " ")


_BY_ALIAS = {_fold(alias): name for name, (label, aliases) in NAMES.items() for alias in (name, label, *aliases)}


def canonical(name: str) -> str:
    """The canonical name of any accepted spelling; case, "_" and "-" don't matter. Raises UnknownSampler."""
    try:
        return _BY_ALIAS[_fold(name)]
    except KeyError:
        raise UnknownSampler(
            f"unknown sampler {name[:64]!r}; known: {', '.join(SAMPLERS)}; "
            f"most of them also with {', '.join(f'_{schedule}' for schedule in SCHEDULES)}",
            "scheduler",
        ) from None


def split(name: str) -> tuple[str, str | None]:
    """The sampler of a canonical name, and its schedule if it has one."""
    sampler, _, schedule = name.rpartition("_")
    return (sampler, schedule) if schedule in SCHEDULES else (name, None)
