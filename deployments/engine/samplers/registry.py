"""The samplers: one entry each, and the names by which requests find them.

To add a sampler of diffusers, add an entry to SAMPLERS and a row to tests/deployments/engine/samplers/
diffusers_schedulers.py. To add one of AUTOMATIC1111's web UI, add an entry to WEBUI_SAMPLERS, its rule to rules.py and
a row to tests/deployments/engine/samplers/k_diffusion.py. No torch here, so that the front can check a request without
it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Literal

from deployments.engine.errors import UnknownSampler

# the spacing of noise levels that the name of a diffusers sampler may end with, to AUTOMATIC1111's label
SCHEDULES: Mapping[str, str] = {
    "karras": "Karras",
    "exponential": "Exponential",
    "beta": "Beta",
    "trailing": "SGM Uniform",
}

# the web UI's schedules besides "Uniform", which a name without one has: functions of schedules.py by their labels
WEBUI_SCHEDULES: Mapping[str, str] = {
    "karras": "Karras",
    "exponential": "Exponential",
    "polyexponential": "Polyexponential",
    "sgm_uniform": "SGM Uniform",
    "kl_optimal": "KL Optimal",
    "align_your_steps": "Align Your Steps",
    "simple": "Simple",
    "normal": "Normal",
    "ddim": "DDIM",
    "beta": "Beta",
    # Forge's
    "turbo": "Turbo",
    "align_your_steps_gits": "Align Your Steps GITS",
    "align_your_steps_11": "Align Your Steps 11",
    "align_your_steps_32": "Align Your Steps 32",
    # the four for SDXL, which there are meant wherever the model is one
    "align_your_steps_xl": "Align Your Steps XL",
    "align_your_steps_gits_xl": "Align Your Steps GITS XL",
    "align_your_steps_11_xl": "Align Your Steps 11 XL",
    "align_your_steps_32_xl": "Align Your Steps 32 XL",
    # stable-diffusion.cpp's
    "smoothstep": "Smoothstep",
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


@dataclass(frozen=True, slots=True)
class WebuiSampler:
    """A sampler as AUTOMATIC1111's web UI has it: k-diffusion's, and its own on the timesteps of latent diffusion.

    Attributes:
        label: its name there, as of 1.10.
        rule: the function of rules.py.
        source: the paper or code that describes it.
        aliases: further names; the own one without "webui_" is one without being listed.
        automatic: the schedule that "Automatic" stands for; None for "Uniform".
        schedules: the WEBUI_SCHEDULES that may be requested for it.
        levels: what it runs on: any noise level, the timesteps of DDIM or UniPC, or those that LCMs were distilled for.
        discards: it leaves out the last noise level but one.
        eta: of a request that doesn't say.
        options: of parameters.SamplerOptions, what it has.
        guidance_factor: what a request's guidance scale is multiplied with.
        needs_guidance: it uses the unguided output too.
        recursive: as in Sampler.
    """

    label: str
    rule: str
    source: str
    aliases: tuple[str, ...] = ()
    automatic: str | None = None
    schedules: tuple[str, ...] = tuple(WEBUI_SCHEDULES)
    levels: Literal["any", "ddim", "unipc", "lcm"] = "any"
    discards: bool = False
    eta: float = 1.0
    options: tuple[str, ...] = ()
    guidance_factor: float = 1.0
    needs_guidance: bool = False
    recursive: bool = False

    # a checkpoint's zero terminal SNR is nearly reached, as the web UI does it
    zero_snr: Literal[True] = True


# how a name that means a diffusers scheduler says so where the web UI's samplers are meant otherwise
DIFFUSERS_PREFIX = "diffusers "

_CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")
_NOISE = ("eta", "s_noise")

WEBUI_SAMPLERS: Mapping[str, WebuiSampler] = {
    "webui_dpmpp_2m": WebuiSampler(
        "DPM++ 2M", "dpmpp_2m", "arXiv:2211.01095, algorithm 2", ("k_dpmpp_2m", "dpm++2m"), automatic="karras"
    ),
    "webui_dpmpp_sde": WebuiSampler(
        "DPM++ SDE",
        "dpmpp_sde",
        "k-diffusion, sample_dpmpp_sde; arXiv:2211.01095",
        ("k_dpmpp_sde",),
        automatic="karras",
        options=_NOISE,
    ),
    "webui_dpmpp_2m_sde": WebuiSampler(
        "DPM++ 2M SDE",
        "dpmpp_2m_sde",
        "k-diffusion, sample_dpmpp_2m_sde",
        ("k_dpmpp_2m_sde", "dpm++2m_sde"),
        automatic="exponential",
        options=_NOISE,
    ),
    "webui_dpmpp_2m_sde_heun": WebuiSampler(
        "DPM++ 2M SDE Heun",
        "dpmpp_2m_sde_heun",
        "k-diffusion, sample_dpmpp_2m_sde",
        ("k_dpmpp_2m_sde_heun",),
        automatic="exponential",
        options=_NOISE,
    ),
    "webui_dpmpp_2s_a": WebuiSampler(
        "DPM++ 2S a",
        "dpmpp_2s_ancestral",
        "k-diffusion, sample_dpmpp_2s_ancestral; arXiv:2211.01095, algorithm 1",
        ("k_dpmpp_2s_a", "dpm++2s_a"),
        automatic="karras",
        options=_NOISE,
    ),
    "webui_dpmpp_3m_sde": WebuiSampler(
        "DPM++ 3M SDE",
        "dpmpp_3m_sde",
        "k-diffusion, sample_dpmpp_3m_sde",
        ("k_dpmpp_3m_sde",),
        automatic="exponential",
        discards=True,
        options=_NOISE,
    ),
    "webui_euler_a": WebuiSampler(
        "Euler a",
        "euler_ancestral",
        "k-diffusion, sample_euler_ancestral",
        ("k_euler_a", "k_euler_ancestral"),
        options=("eta",),
    ),
    "webui_euler": WebuiSampler("Euler", "euler", "arXiv:2206.00364, algorithm 2", ("k_euler",), options=_CHURN),
    "webui_lms": WebuiSampler("LMS", "lms", "k-diffusion, sample_lms", ("k_lms",)),
    "webui_heun": WebuiSampler("Heun", "heun", "arXiv:2206.00364, algorithm 2", ("k_heun",), options=_CHURN),
    "webui_dpm2": WebuiSampler(
        "DPM2",
        "dpm_2",
        "arXiv:2206.00364 and 2206.00927",
        ("k_dpm_2",),
        automatic="karras",
        discards=True,
        options=_CHURN,
    ),
    "webui_dpm2_a": WebuiSampler(
        "DPM2 a",
        "dpm_2_ancestral",
        "k-diffusion, sample_dpm_2_ancestral",
        ("k_dpm_2_a",),
        automatic="karras",
        discards=True,
        options=_NOISE,
    ),
    "webui_dpm_fast": WebuiSampler(
        "DPM fast", "dpm_fast", "arXiv:2206.00927, DPM-Solver-fast", ("k_dpm_fast",), schedules=(), options=_NOISE
    ),
    "webui_restart": WebuiSampler("Restart", "restart", "arXiv:2306.14878", automatic="karras"),
    "webui_ddim": WebuiSampler(
        "DDIM", "euler_ancestral", "arXiv:2010.02502", schedules=(), levels="ddim", eta=0.0, options=("eta",)
    ),
    "webui_ddim_cfgpp": WebuiSampler(
        "DDIM CFG++",
        "euler_cfgpp",
        "arXiv:2406.08070",
        ("ddim_cfgpp",),
        schedules=(),
        levels="ddim",
        eta=0.0,
        options=("eta",),
        guidance_factor=1 / 12.5,
        needs_guidance=True,
    ),
    "webui_plms": WebuiSampler("PLMS", "plms", "arXiv:2202.09778", schedules=(), levels="ddim"),
    "webui_unipc": WebuiSampler(
        "UniPC", "unipc", "arXiv:2302.04867, bh1", schedules=(), levels="unipc", recursive=True
    ),
    "webui_lcm": WebuiSampler("LCM", "lcm", "arXiv:2310.04378", ("k_lcm",), levels="lcm"),
    # Forge's and stable-diffusion.cpp's
    "webui_euler_cfgpp": WebuiSampler(
        "Euler CFG++", "euler_cfgpp", "arXiv:2406.08070", ("euler_cfg_pp",), eta=0.0, needs_guidance=True
    ),
    "webui_euler_a_cfgpp": WebuiSampler(
        "Euler a CFG++",
        "euler_cfgpp",
        "arXiv:2406.08070",
        ("euler_a_cfg_pp", "euler_ancestral_cfg_pp"),
        options=("eta",),
        needs_guidance=True,
    ),
    "webui_ipndm": WebuiSampler("IPNDM", "ipndm", "arXiv:2204.13902"),
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
    return names | _webui_names({fold(text) for name, (label, more) in names.items() for text in (name, label, *more)})


def _webui_names(taken: set[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """The same of the web UI's samplers. What already means a sampler of diffusers goes on meaning it."""
    names = {}
    for name, sampler in WEBUI_SAMPLERS.items():
        free = [alias for alias in (name.removeprefix("webui_"), *sampler.aliases) if fold(alias) not in taken]
        label = f"webui {sampler.label}" if fold(sampler.label) in taken else sampler.label
        names[name] = (label, tuple(free))
        for schedule in sampler.schedules:
            aliases = [f"{alias}_{schedule}" for alias in free]
            if schedule == "karras":
                aliases += [f"{alias}_ka" for alias in free if alias.startswith("k_")]
            names[f"{name}_{schedule}"] = (f"{label} {WEBUI_SCHEDULES[schedule]}", tuple(aliases))
    return names


def fold(name: str) -> str:
    """A spelling without what makes no difference."""
    return name.strip().lower().replace("_", " ").replace("-", " ")


# every canonical name, with and without a schedule, to its label and aliases
NAMES: Mapping[str, tuple[str, tuple[str, ...]]] = _names()

# samplers that are asked for and aren't here: why, or what is nearest
_ADAPTIVE = "it chooses its steps by the picture, so that they are no table; 'DPM fast' is the nearest"
_NEAREST = {
    "dpm adaptive": _ADAPTIVE,
    "k dpm ad": _ADAPTIVE,
    "res multistep": "'DPM++ 2M' is the nearest",
    "k res multistep": "'DPM++ 2M' is the nearest",
    "ipndm v": "'IPNDM' is the nearest",
    "heunpp2": "'Heun' is the nearest",
}

_BY_ALIAS = {fold(alias): name for name, (label, aliases) in NAMES.items() for alias in (name, label, *aliases)}


def canonical(name: str) -> str:
    """The canonical name of any accepted spelling; case, "_" and "-" don't matter. Raises UnknownSampler."""
    folded = fold(name)
    if folded in _NEAREST:
        raise UnknownSampler(f"there is no sampler {name.strip()!r} here: {_NEAREST[folded]}", "scheduler")
    try:
        return _BY_ALIAS[folded]
    except KeyError:
        raise UnknownSampler(
            f"unknown sampler {name[:64]!r}; known: {', '.join(SAMPLERS)}; "
            f"most of them also with {', '.join(f'_{schedule}' for schedule in SCHEDULES)}; "
            f"and the web UI's, such as {', '.join(list(WEBUI_SAMPLERS)[:3])}",
            "scheduler",
        ) from None


def split(name: str) -> tuple[str, str | None]:
    """The sampler of a canonical name, and its schedule if it has one."""
    if name in WEBUI_SAMPLERS:
        return name, None
    for schedule in sorted(WEBUI_SCHEDULES, key=len, reverse=True):
        if name.removesuffix(f"_{schedule}") in WEBUI_SAMPLERS:
            return name.removesuffix(f"_{schedule}"), schedule
    sampler, _, schedule = name.rpartition("_")
    return (sampler, schedule) if schedule in SCHEDULES else (name, None)


def entry(name: str) -> Sampler | WebuiSampler:
    """The entry of a canonical name."""
    sampler = split(name)[0]
    return WEBUI_SAMPLERS[sampler] if is_webui(name) else SAMPLERS[sampler]


def is_webui(name: str) -> bool:
    """Whether a canonical sampler is the web UI's."""
    return split(name)[0] in WEBUI_SAMPLERS


def options_of(name: str) -> tuple[str, ...]:
    """What a canonical sampler has of parameters.SamplerOptions."""
    sampler = WEBUI_SAMPLERS.get(split(name)[0])
    return () if sampler is None else sampler.options


def needs_guidance(name: str) -> bool:
    """Whether a canonical sampler uses the unguided output too."""
    sampler = WEBUI_SAMPLERS.get(split(name)[0])
    return sampler is not None and sampler.needs_guidance


def taken_steps(name: str, steps: int, strength: float) -> int:
    """How many inference steps of a canonical sampler's schedule run where it begins with an image.

    As StableDiffusionImg2ImgPipeline counts, or the web UI (its setup_img2img_steps); 0 for a strength too small.
    """
    sampler = WEBUI_SAMPLERS.get(split(name)[0])
    if sampler is None:
        return min(int(steps * strength), steps)
    last = int(min(strength, 0.999) * steps)
    return last + 1 if sampler.levels in ("any", "lcm") else min(max(last, 2), steps)


def second_pass_steps(name: str, steps: int, strength: float) -> int:
    """How many inference steps of a schedule a second pass takes, which was asked for by that number.

    The web UI makes the schedule steps / strength long, rounded down.
    """
    if not is_webui(name):
        return int(steps * strength)
    return ceil(steps * min(strength, 0.999) - 1e-6)


def second_pass_schedule(name: str, taken: int, strength: float) -> int:
    """The length of a schedule of which a second pass takes so many steps."""
    if is_webui(name):
        return max(taken, int(taken / min(strength, 0.999)))
    whole = ceil(taken / strength)
    return whole + (int(whole * strength) < taken)  # what rounding took


def second_pass_strength(name: str, steps: int, strength: float) -> float:
    """A strength of which `taken_steps` says as many steps of the schedule as the second pass takes."""
    if not is_webui(name):
        return strength
    return (second_pass_steps(name, steps, strength) - 0.5) / steps
