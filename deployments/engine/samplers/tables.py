"""Sampler tables: coefficients for a sampler's name, a checkpoint's scheduler config and a number of steps.

A table of SAMPLERS does what a pipeline of diffusers 0.42 does after
`pipe.scheduler = Class.from_config(pipe.scheduler.config, **overrides)`. tracing.py reads the numbers from the
scheduler; this module chooses its class, its configuration, and the part of the schedule to run. The web UI's samplers
are webui.py's.
"""

import copy
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MethodType, SimpleNamespace
from typing import Any

import diffusers
import numpy as np

from deployments.engine.errors import InvalidRequest, UnknownSampler
from deployments.engine.parameters import OWN_OPTIONS, SamplerOptions
from deployments.engine.samplers.registry import SAMPLERS, canonical, is_webui, split
from deployments.engine.samplers.tracing import SamplerStep, SamplerTable, trace
from deployments.engine.samplers.webui import webui_table

__all__ = ["SamplerStep", "SamplerTable", "sampler_table"]


# a name with a schedule sets all of these keys of the configuration
_SIGMAS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta": "use_beta_sigmas"}

# what an SD pipeline assumes where a config has no entry; the classes' own defaults are meant for pixels
_PIPELINE_DEFAULTS = {"clip_sample": False, "skip_prk_steps": True}


@dataclass(frozen=True, slots=True)
class _Schedule:
    """The timesteps of the UNet evaluations, noisiest first, and the scheduler's order and training timesteps."""

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
    options: SamplerOptions = OWN_OPTIONS,
) -> SamplerTable:
    """The coefficients of a sampler on a checkpoint's schedule, or on a part of it.

    Cached: a new schedule takes up to 0.1 s (KDPM2's first on a checkpoint 0.5 s), a known one 0.1 ms.

    Args:
        scheduler_config: the checkpoint's scheduler_config.json, or `pipe.scheduler.config`.
        sampler: any spelling that registry.canonical accepts.
        steps: inference steps of the whole schedule, 1 to num_train_timesteps.
        denoising_start: fraction at which latents are taken over from another stage, cut by timestep as in
            StableDiffusionXLImg2ImgPipeline; 0 begins the schedule.
        denoising_end: fraction at which latents are handed over, cut likewise; 0 <= start < end <= 1.
        strength: img2img, 0 < strength <= 1; cuts the schedule by number of steps, as in
            StableDiffusionImg2ImgPipeline. Not together with denoising_start. Samplers of the web UI count as it does,
            and take 0 too.
        options: of the samplers that have them.

    Raises:
        InvalidRequest: a value is out of range or leaves no step (field: steps, denoising_start, denoising_end,
            strength).
        UnknownSampler: the name is unknown, or the scheduler isn't linear with this config.
    """
    name = canonical(sampler)
    webui = is_webui(name)
    _check_fractions(denoising_start, denoising_end, strength, least=0.0 if webui else None)
    config = _as_key(scheduler_config)
    if webui:
        return _webui_table(config, name, steps, options, denoising_start, denoising_end, strength)
    schedule = _schedule(config, name, steps)
    begin, end = _span(schedule, steps, denoising_start, denoising_end, strength)
    return _table(config, name, steps, begin, end, denoising_start > 0.0)


def _as_key(scheduler_config: Mapping[str, Any]) -> str:
    return json.dumps(dict(scheduler_config), sort_keys=True, default=_plain)


def _check_fractions(start: float, end: float, strength: float | None, least: float | None) -> None:
    """least: the strength that is enough; None where it has to be above 0."""
    if not 0.0 <= start < 1.0:
        raise InvalidRequest(f"denoising_start must be at least 0 and below 1, not {start}", "denoising_start")
    if not 0.0 < end <= 1.0:
        raise InvalidRequest(f"denoising_end must be above 0 and at most 1, not {end}", "denoising_end")
    if end <= start:
        raise InvalidRequest(f"denoising_end ({end}) must be above denoising_start ({start})", "denoising_end")
    if strength is None:
        return
    if not 0.0 < strength <= 1.0 and strength != least:
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
def _webui_table(
    config: str,
    name: str,
    steps: int,
    options: SamplerOptions,
    start: float,
    end: float,
    strength: float | None,
) -> SamplerTable:
    try:
        return webui_table(json.loads(config), name, steps, options, start=start, end=end, strength=strength)
    except ValueError as error:
        raise _cannot_run(name, error) from error


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
    missing = _PIPELINE_DEFAULTS.keys() & _parameters(name) - (
        stated.keys() - set(stated.get("_use_default_values", ()))
    )
    overrides = {key: _PIPELINE_DEFAULTS[key] for key in missing} | dict(sampler.overrides) | _schedule_of(name)
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
    """The config's entries for the schedule in a sampler's name; none if it has no schedule."""
    schedule = split(name)[1]
    if schedule is None:
        return {}
    sigmas = {key: schedule == one for one, key in _SIGMAS.items() if key in _parameters(name)}
    return sigmas | ({"timestep_spacing": "trailing"} if schedule == "trailing" else {})


@lru_cache
def _parameters(name: str) -> frozenset[str]:
    """The config's entries that the sampler's scheduler class reads."""
    scheduler = getattr(diffusers, SAMPLERS[split(name)[0]].scheduler)
    return frozenset(inspect.signature(scheduler.__init__).parameters)


def _cannot_run(name: str, reason: object) -> UnknownSampler:
    return UnknownSampler(f"{name} can't run on this checkpoint: {reason}", "scheduler")


def _plain(value: Any) -> Any:
    """Arrays in a config (trained_betas) as lists, for json."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a scheduler config can't hold a {type(value).__name__}")
