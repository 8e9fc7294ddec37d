"""Samplers as tables: a name, a checkpoint's scheduler config and a number of steps become coefficients.

Says which diffusers scheduler a name stands for and which part of its schedule a request runs; the numbers
are read from the scheduler itself (sampler_tracing.py). Knows nothing of lanes, devices or latents: a table
takes a few small tensors on the CPU, once, then it is cached.

Checked against diffusers 0.42: a table does what a pipeline does after
`pipe.scheduler = Class.from_config(pipe.scheduler.config, **overrides)`.
"""

import copy
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MethodType, SimpleNamespace
from typing import Any

import diffusers
import numpy as np

from deployments.engine.errors import InvalidRequest, UnknownSampler
from deployments.engine.samplers.names import canonical, split
from deployments.engine.samplers.tracing import SamplerStep, SamplerTable, trace

__all__ = ["SAMPLERS", "Sampler", "SamplerStep", "SamplerTable", "sampler_table"]


@dataclass(frozen=True, slots=True)
class Sampler:
    """A diffusers scheduler class, what its config must say to be this sampler, and how pipelines step it.

    recursive: see sampler_tracing.trace.
    """

    scheduler: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    step_arguments: Mapping[str, Any] = field(default_factory=dict)
    recursive: bool = False


# What a name doesn't settle is the checkpoint's: Euler has Karras sigmas if the config says use_karras_sigmas.
_DPMPP_2M = {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": False}

SAMPLERS: Mapping[str, Sampler] = {
    "ddim": Sampler("DDIMScheduler"),
    "ddpm": Sampler("DDPMScheduler"),
    "pndm": Sampler("PNDMScheduler"),
    "euler": Sampler("EulerDiscreteScheduler"),
    "euler_a": Sampler("EulerAncestralDiscreteScheduler"),
    "heun": Sampler("HeunDiscreteScheduler"),
    "dpmpp_2m": Sampler("DPMSolverMultistepScheduler", _DPMPP_2M),
    "dpmpp_2m_sde": Sampler("DPMSolverMultistepScheduler", _DPMPP_2M | {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2s": Sampler(
        "DPMSolverSinglestepScheduler",
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "lower_order_final": True},
    ),
    "unipc": Sampler("UniPCMultistepScheduler", recursive=True),
    "deis": Sampler("DEISMultistepScheduler", {"algorithm_type": "deis", "solver_type": "logrho"}),
    "lms": Sampler("LMSDiscreteScheduler"),
    "kdpm2": Sampler("KDPM2DiscreteScheduler"),
    "kdpm2_a": Sampler("KDPM2AncestralDiscreteScheduler"),
    "lcm": Sampler("LCMScheduler"),
    # diffusers' pipelines give every scheduler that takes an eta their own default, 0: TCD without noise
    "tcd": Sampler("TCDScheduler", step_arguments={"eta": 0.0}),
}

# the config's keys that say how the noise levels lie; a name that says it settles all of them
_SIGMAS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}

# What an SD pipeline assumes where a config says nothing; the classes' own defaults are meant for pixels.
_WHERE_SILENT = {"clip_sample": False, "skip_prk_steps": True}


@dataclass(frozen=True, slots=True)
class _Schedule:
    """What set_timesteps made: one timestep for each UNet evaluation, noisiest first."""

    timesteps: tuple[float, ...]
    order: int
    train_timesteps: int

    def cutoff(self, fraction: float) -> int:
        """The timestep at a fraction of the schedule (StableDiffusionXLPipeline.__call__, denoising_end)."""
        return round(self.train_timesteps - fraction * self.train_timesteps)


def sampler_table(
    scheduler_config: Mapping[str, Any],
    sampler: str,
    steps: int,
    *,
    denoising_start: float = 0.0,
    denoising_end: float = 1.0,
    strength: float | None = None,
) -> SamplerTable:
    """The table of a sampler on a checkpoint's schedule, or of the part of it that a request runs.

    scheduler_config: the checkpoint's scheduler_config.json, or `pipe.scheduler.config`.
    sampler: any spelling of sampler_names.
    steps: inference steps of the whole schedule, before the following cut it; 1..num_train_timesteps.
    denoising_start, denoising_end: fractions, 0 <= start < end <= 1, cut by timestep as diffusers' SDXL
        pipelines do. A start above 0 takes over latents that are noisy already.
    strength: img2img, 0 < strength <= 1; cuts the schedule by count, as in StableDiffusionImg2ImgPipeline.
        Not together with a denoising_start, which says the same thing.

    Raises InvalidRequest (field: steps, denoising_start, denoising_end, strength) for values that leave
    nothing to run, UnknownSampler for a name that isn't known or a scheduler that isn't linear with this config.
    Cached: a new schedule takes up to 0.1 s (KDPM2's first on a checkpoint 0.5 s), a known one 0.1 ms.
    """
    name = canonical(sampler)
    _check_fractions(denoising_start, denoising_end, strength)
    config = _as_key(scheduler_config)
    schedule = _schedule(config, name, steps)
    begin, end = _span(schedule, steps, denoising_start, denoising_end, strength)
    return _table(config, name, steps, begin, end, denoising_start > 0.0)


def _as_key(scheduler_config: Mapping[str, Any]) -> str:
    return json.dumps(dict(scheduler_config), sort_keys=True, default=_plain)


def _check_fractions(start: float, end: float, strength: float | None) -> None:
    if not 0.0 <= start < 1.0:
        raise InvalidRequest(f"denoising_start must be at least 0 and below 1, not {start}", "denoising_start")
    if not 0.0 < end <= 1.0:
        raise InvalidRequest(f"denoising_end must be above 0 and at most 1, not {end}", "denoising_end")
    if end <= start:
        raise InvalidRequest(f"denoising_end ({end}) must be above denoising_start ({start})", "denoising_end")
    if strength is None:
        return
    if not 0.0 < strength <= 1.0:
        raise InvalidRequest(f"strength must be above 0 and at most 1, not {strength}", "strength")
    if start > 0.0:
        raise InvalidRequest("strength and denoising_start both say where to start; give one", "strength")


def _span(schedule: _Schedule, steps: int, start: float, end: float, strength: float | None) -> tuple[int, int]:
    """The evaluations begin..end-1 that a request runs; never empty.

    After diffusers 0.42.1: get_timesteps in the img2img pipelines of stable_diffusion and
    stable_diffusion_xl, and "Apply denoising_end" in both pipelines of the latter.
    """
    timesteps, begin = schedule.timesteps, 0
    if start > 0.0:
        count = sum(t < schedule.cutoff(start) for t in timesteps)
        if schedule.order == 2 and count % 2 == 0:
            count += 1  # don't start between the two halves of a second order step
        begin = len(timesteps) - count
        if count == 0:
            raise InvalidRequest(f"no step is left after denoising_start {start}", "denoising_start")
    elif strength is not None:
        count = min(int(steps * strength), steps)
        begin = (steps - count) * schedule.order
        if count == 0 or begin >= len(timesteps):
            raise InvalidRequest(f"strength {strength} leaves none of {steps} steps", "strength")
    stop = len(timesteps)
    if end < 1.0:
        stop = begin + sum(t >= schedule.cutoff(end) for t in timesteps[begin:])
        if stop == begin:
            raise InvalidRequest(f"no step is left before denoising_end {end}", "denoising_end")
    return begin, stop


@lru_cache(maxsize=1024)
def _schedule(config: str, name: str, steps: int) -> _Schedule:
    scheduler = _scheduler(config, name, steps)
    return _Schedule(
        timesteps=tuple(scheduler.timesteps.tolist()),
        order=scheduler.order,
        train_timesteps=scheduler.config.num_train_timesteps,
    )


@lru_cache(maxsize=1024)
def _table(config: str, name: str, steps: int, begin: int, end: int, takes_over: bool) -> SamplerTable:
    sampler = SAMPLERS[split(name)[0]]
    scheduler = _scheduler(config, name, steps)
    try:
        return trace(
            scheduler,
            begin,
            end,
            takes_over=takes_over,
            step_arguments=sampler.step_arguments,
            recursive=sampler.recursive,
        )
    except (ValueError, NotImplementedError) as error:
        raise _cannot_run(name, error) from error


def _scheduler(config: str, name: str, steps: int) -> Any:
    """A fresh scheduler with its timesteps set."""
    scheduler = copy.deepcopy(_prototype(config, name))
    most = scheduler.config.num_train_timesteps
    if "original_inference_steps" in _parameters(name):
        most = min(most, scheduler.config.original_inference_steps)
    if not 1 <= steps <= most:
        raise InvalidRequest(f"{name} runs 1 to {most} steps on this checkpoint, not {steps}", "steps")
    try:
        scheduler.set_timesteps(steps)
    except (ValueError, NotImplementedError) as error:
        raise _cannot_run(name, error) from error
    if isinstance(scheduler, diffusers.LMSDiscreteScheduler):
        _integrate_in_numpy(scheduler)
    return scheduler


def _integrate_in_numpy(scheduler: Any) -> None:
    """LMS integrates its coefficients over float32 tensors of one element; numpy's scalars round alike, 10x faster."""
    stand_in = SimpleNamespace(sigmas=scheduler.sigmas.numpy())
    scheduler.get_lms_coefficient = MethodType(diffusers.LMSDiscreteScheduler.get_lms_coefficient, stand_in)


@lru_cache(maxsize=128)
def _prototype(config: str, name: str) -> Any:
    """The scheduler as a diffusers user would make it; only copies are stepped. KDPM2 takes 0.4 s to make."""
    sampler, stated = SAMPLERS[split(name)[0]], json.loads(config)
    silent = _WHERE_SILENT.keys() & _parameters(name) - (stated.keys() - set(stated.get("_use_default_values", ())))
    overrides = {key: _WHERE_SILENT[key] for key in silent} | dict(sampler.overrides) | _schedule_of(name)
    try:
        scheduler = getattr(diffusers, sampler.scheduler).from_config(stated, **overrides)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise _cannot_run(name, error) from error
    for key in _parameters(name) & {"thresholding", "clip_sample"}:
        if scheduler.config[key]:
            raise _cannot_run(name, f"its scheduler config has {key}, which isn't linear")
    if scheduler.config.get("variance_type") in ("learned", "learned_range"):
        raise _cannot_run(name, "its scheduler config has a learned variance")
    return scheduler


def _schedule_of(name: str) -> dict[str, Any]:
    """What a config must say for the schedule in a sampler's name, if there is one."""
    schedule = split(name)[1]
    if schedule is None:
        return {}
    sigmas = {key: schedule == one for one, key in _SIGMAS.items() if key in _parameters(name)}
    return sigmas | ({"timestep_spacing": "trailing"} if schedule == "trailing" else {})


@lru_cache
def _parameters(name: str) -> frozenset[str]:
    """What the sampler's scheduler class reads from a config."""
    scheduler = getattr(diffusers, SAMPLERS[split(name)[0]].scheduler)
    return frozenset(inspect.signature(scheduler.__init__).parameters)


def _cannot_run(name: str, reason: object) -> UnknownSampler:
    return UnknownSampler(f"{name} can't run on this checkpoint: {reason}", "scheduler")


def _plain(value: Any) -> Any:
    """Arrays in a config (trained_betas) as lists, for json."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a scheduler config can't hold a {type(value).__name__}")
