"""The tables of the samplers of AUTOMATIC1111's web UI: which noise levels a request runs on, and where it begins.

Levels and beginnings are the web UI's (1.10: its sd_samplers_kdiffusion, _timesteps and _common), so an image of it is
drawn over with as many evaluations as there. Numbers are k-diffusion's: a sample is clean + sigma * noise.
"""

from dataclasses import dataclass, replace
from typing import Any

import diffusers
import numpy as np

from deployments.engine.errors import InvalidRequest
from deployments.engine.parameters import SamplerOptions
from deployments.engine.samplers.recording import Recording, Row
from deployments.engine.samplers.registry import WEBUI_SAMPLERS, WebuiSampler, split, taken_steps
from deployments.engine.samplers.rules import PATHS, RULES, dpm_fast_orders
from deployments.engine.samplers.schedules import NoiseLevels, schedule
from deployments.engine.samplers.tracing import SamplerTable

# the web UI's alpha-bar of the last timestep with zero terminal SNR (arXiv:2305.08891), whose sigma would be infinite
_NEARLY_ZERO_SNR = 4.8973451890853435e-08

# timesteps for which LCMs were distilled, of the 1000
_LCM_STEPS = 50


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """The noise levels that a request goes through.

    Attributes:
        sigmas: from the first evaluation's to the last sample's.
        timesteps: of the sigmas; None where they follow from the levels.
        total: as in Recording.
        numbers: the inference step that each of the steps between the sigmas is.
        start: coefficients of a clean image and of noise, of the first sample of an image; None for 1 and the sigma.
        first_noise, last: what the first sample of noise, and the last sample, are multiplied with.
    """

    sigmas: Row
    timesteps: Row | None
    total: int
    numbers: tuple[int, ...]
    start: tuple[float, float] | None = None
    first_noise: float | None = None
    last: float = 1.0


def webui_table(
    config: dict[str, Any],
    name: str,
    steps: int,
    options: SamplerOptions,
    *,
    start: float,
    end: float,
    strength: float | None,
) -> SamplerTable:
    """The table of a canonical sampler of the web UI. Arguments and errors are those of tables.sampler_table.

    Raises ValueError for a checkpoint whose coefficients aren't finite.
    """
    sampler = WEBUI_SAMPLERS[split(name)[0]]
    alphas = _alphas_cumprod(config)
    if not 1 <= steps <= len(alphas):
        raise InvalidRequest(f"{name} runs 1 to {len(alphas)} steps on this checkpoint, not {steps}", "steps")
    taken = steps if strength is None else taken_steps(name, steps, strength)
    levels = _levels(sampler, alphas)
    if sampler.levels in ("any", "lcm"):
        run = _by_sigma(sampler, split(name)[1], steps, taken, levels)
    else:
        run = _by_timestep(sampler, steps, taken if strength is not None else None, levels, alphas)
    takes_over = start > 0
    if takes_over:
        run = _from(run, levels, _cutoff(start, len(alphas)))
    stop = len(run.numbers) if end == 1 else _first_below(run, levels, _cutoff(end, len(alphas)))
    if stop == 0:
        raise InvalidRequest(f"no step is left before denoising_end {end}", "denoising_end")
    eta = sampler.eta if options.eta is None or "eta" not in sampler.options else options.eta
    own = {option: getattr(options, option) for option in sampler.options if option != "eta"}
    recording = Recording(
        run.sigmas,
        levels,
        str(config.get("prediction_type", "epsilon")),
        SamplerOptions(**own),
        eta,
        run.total,
        run.timesteps,
    )
    last = RULES[sampler.rule](recording, recording.start)
    table = recording.table(
        last * run.last, numbers=run.numbers, stop=stop, recursive=sampler.recursive, takes_over=takes_over
    )
    if run.first_noise is not None:
        table = replace(table, init_noise_sigma=run.first_noise)
    if run.start is not None and not takes_over:
        table = replace(table, start_sample=run.start[0], start_noise=run.start[1])
    return replace(table, guidance_factor=sampler.guidance_factor)


def _alphas_cumprod(config: dict[str, Any]) -> Row:
    scheduler = diffusers.DDIMScheduler.from_config(config, clip_sample=False, thresholding=False)
    alphas = np.array(scheduler.alphas_cumprod, dtype=np.float64)
    return np.where(alphas > 0, alphas, _NEARLY_ZERO_SNR)


def _levels(sampler: WebuiSampler, alphas: Row) -> NoiseLevels:
    sigmas, timesteps = np.sqrt(1 / alphas - 1), np.arange(len(alphas), dtype=np.float64)
    if sampler.levels == "lcm":
        every = len(alphas) // _LCM_STEPS
        return NoiseLevels(sigmas[every - 1 :: every], timesteps[every - 1 :: every], between=False)
    return NoiseLevels(sigmas, timesteps)


def _by_sigma(sampler: WebuiSampler, named: str | None, steps: int, taken: int, levels: NoiseLevels) -> _Run:
    """k-diffusion's samplers."""
    sigmas = schedule(named, steps + sampler.discards, levels)
    if sampler.discards:
        sigmas = np.delete(sigmas, -2)
    sigmas = sigmas[steps - taken :]
    if len(sigmas) < 2:
        raise InvalidRequest(f"the schedule has no step left of {steps}", "strength")
    total = len(sigmas) - 1
    path = PATHS[sampler.rule](sigmas, levels) if sampler.rule in PATHS else sigmas
    parts = np.array(dpm_fast_orders(total) if sampler.rule == "dpm_fast" else np.diff(path) < 0, dtype=np.float64)
    return _Run(path, None, total, _numbers(parts, steps - taken, steps))


def _numbers(parts: Row, first: int, steps: int) -> tuple[int, ...]:
    """The inference steps that a run's steps begin with. parts: how many each of them is, first: of the first."""
    begun = first + np.cumsum(parts) - parts
    return tuple(np.minimum(begun, steps - 1).astype(int).tolist())


def _by_timestep(sampler: WebuiSampler, steps: int, taken: int | None, levels: NoiseLevels, alphas: Row) -> _Run:
    """DDIM and its kin, whose samples are sqrt(alpha) as large there. taken: None without an image."""
    timesteps = np.clip(np.arange(0, len(alphas), len(alphas) // steps) + 1, 0, len(alphas) - 1)
    if len(timesteps) < 2:
        raise InvalidRequest(f"{sampler.label} has no step of {steps}: take 2", "steps")
    count = len(timesteps) if taken is None else min(taken, len(timesteps) - 1)
    noisy = alphas[timesteps[min(count, len(timesteps) - 1)]]
    if sampler.levels == "unipc":
        visited = np.linspace(len(alphas) - 1 if taken is None else timesteps[count - 1], 0, count + 1)
        passed = np.exp(np.interp(visited, np.arange(len(alphas)), np.log(alphas)))
    else:
        visited = timesteps[:count][::-1].astype(np.float64)
        passed = alphas[timesteps[:count]][::-1]
    first = float(np.sqrt(passed[0]))
    return _Run(
        np.sqrt(1 / passed - 1),
        visited,
        len(passed) - 1,
        _numbers(np.ones(len(passed) - 1), max(0, len(timesteps) - count), steps),
        (float(np.sqrt(noisy)) / first, float(np.sqrt(1 - noisy)) / first),
        1 / first,
        float(np.sqrt(passed[-1])),
    )


def _cutoff(fraction: float, trained: int) -> int:
    """The timestep at a fraction of the schedule, as in tables.py."""
    return round(trained - fraction * trained)


def _from(run: _Run, levels: NoiseLevels, cutoff: int) -> _Run:
    """The part of a run that begins below a timestep."""
    first = _first_below(run, levels, cutoff)
    if first == len(run.numbers):
        raise InvalidRequest("no step is left after denoising_start", "denoising_start")
    timesteps = None if run.timesteps is None else run.timesteps[first:]
    return replace(run, sigmas=run.sigmas[first:], timesteps=timesteps, numbers=run.numbers[first:])


def _first_below(run: _Run, levels: NoiseLevels, cutoff: int) -> int:
    """The first step of a run that begins below a timestep; their number where none does."""
    timesteps = run.timesteps
    if timesteps is None:
        timesteps = np.array([levels.timestep(sigma) for sigma in run.sigmas[:-1].tolist()])
    return int(np.append(timesteps[: len(run.numbers)] < cutoff, True).argmax())
