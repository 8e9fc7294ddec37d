"""Runs a diffusers scheduler once on basis vectors and reads off its coefficients: there is no sampler code of our own.

Every step gets fresh unit vectors as its sample, its model output and its noise, so that `scheduler.step` returns the
row of coefficients. A few more columns hold random numbers, which the row must reproduce: a scheduler that clips,
thresholds or hides randomness can't. Noise is intercepted by a `TorchFunctionMode`, which is per thread, so that
threads can trace at the same time.
"""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.overrides import TorchFunctionMode

_Rows = npt.NDArray[np.float64]

_DRAWS = 4  # noise columns: no scheduler of diffusers draws more than once in a step
_PROBES = 6  # random columns that check linearity
_PROBE_SCALE = 256.0  # far beyond latents, so that any clipping shows; a power of two keeps float32 exact
_LONGEST_HISTORY = 16  # PNDM with its Runge-Kutta start looks furthest back: 12
_ZERO = 1e-10  # of a row's largest coefficient


@dataclass(frozen=True, slots=True)
class SamplerStep:
    """One UNet evaluation: x[k+1] = sum samples[j] x[k-j] + sum outputs[j] m[k-j] + sum noises[i] n_i.

    Attributes:
        timestep: the UNet's timestep.
        input_scale: the UNet's input is input_scale * x[k] (the scheduler's scale_model_input).
        samples: coefficients of x[k], x[k-1], …; at least one, none before the first step.
        outputs: coefficients of the (guided) model outputs m[k], m[k-1], …; likewise.
        noises: a coefficient for each standard normal tensor that the scheduler draws in this step, in order. Zeros
            are included, because the generator must draw as often as the scheduler.
        kept: coefficients of a clean image and of its noise (the scheduler's add_noise), for the parts that inpainting
            keeps beside x[k+1]; (1, 0) after the schedule's last step.
        returned: the part of samples[0] that belongs to the result of the step before. It differs from x[k] only in
            inpainting, which changes that result.
        unguided: coefficient of the model output without guidance, m[k] being guided.
    """

    timestep: float
    input_scale: float
    samples: tuple[float, ...]
    outputs: tuple[float, ...]
    noises: tuple[float, ...]
    kept: tuple[float, float] = (1.0, 0.0)
    returned: float = 0.0
    unguided: float = 0.0


@dataclass(frozen=True, slots=True)
class SamplerTable:
    """The coefficients of a sampler's run.

    Attributes:
        steps: one for each UNet evaluation.
        inference_steps: for each evaluation, the inference step that it belongs to, counted from 0 at the beginning of
            the whole schedule, which the stages of an image share. Second-order samplers have most of them twice.
        init_noise_sigma: text to image starts from init_noise_sigma * noise.
        start_sample: img2img starts from start_sample * clean + start_noise * noise (the scheduler's add_noise at the
            first step); 1 if a stage takes over noisy latents.
        start_noise: see start_sample; 0 if a stage takes over noisy latents.
        past_samples: earlier samples that a lane keeps beside the current one.
        past_outputs: earlier model outputs that a lane keeps beside the current one.
        guidance_factor: what the request's guidance scale is multiplied with.
    """

    steps: tuple[SamplerStep, ...]
    inference_steps: tuple[int, ...]
    init_noise_sigma: float
    start_sample: float
    start_noise: float
    past_samples: int
    past_outputs: int
    guidance_factor: float = 1.0

    @property
    def reads_returned(self) -> bool:
        """Whether a step uses the result of the step before as well as x[k]."""
        return any(step.returned for step in self.steps)


class _NoiseFromColumns(TorchFunctionMode):
    """Makes this thread's torch.randn return these tensors, one after another."""

    def __init__(self, noises: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.noises = noises
        self.drawn = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch.randn:
            return func(*args, **(kwargs or {}))
        if self.drawn == len(self.noises):
            raise ValueError(f"its scheduler draws noise more than {self.drawn} times in a step")
        self.drawn += 1
        return self.noises[self.drawn - 1].to((kwargs or {}).get("dtype"))


def trace(
    scheduler: Any,
    begin: int,
    end: int,
    *,
    takes_over: bool,
    step_arguments: Mapping[str, Any],
    recursive: bool,
) -> SamplerTable:
    """Read the coefficients of the evaluations begin..end-1.

    Args:
        scheduler: a fresh diffusers scheduler whose set_timesteps has been called; used up.
        begin: first evaluation.
        end: the evaluation after the last.
        takes_over: the latents come noisy from a stage before, so no noise is added.
        step_arguments: further arguments of scheduler.step, as pipelines give them (eta).
        recursive: the scheduler's state isn't a function of a few past samples and outputs (UniPC corrects its own
            sample again and again), so rows are shortened by the step before; see _shorten.

    Raises:
        ValueError: the scheduler isn't linear, or its coefficients aren't finite; and what the scheduler raises.
    """
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    timesteps = scheduler.timesteps[begin:end]
    start_sample, start_noise = (1.0, 0.0) if takes_over else _start(scheduler, timesteps[:1])
    sigma = float(scheduler.init_noise_sigma)
    following = scheduler.timesteps[begin + 1 : end + 1]
    scales, rows, noises, kept = _rows(scheduler, timesteps, following, step_arguments)
    if not all(map(isfinite, (start_sample, start_noise, sigma))):
        raise ValueError("its scheduler's first noise level isn't finite")
    every = len(scheduler.timesteps)
    return table_of_rows(
        rows,
        np.zeros(len(rows)),
        recursive=recursive,
        timesteps=timesteps.tolist(),
        scales=scales,
        noises=noises,
        kept=kept,
        inference_steps=[evaluation * scheduler.num_inference_steps // every for evaluation in range(begin, end)],
        init_noise_sigma=sigma,
        start=(start_sample, start_noise),
        unguided=[0.0] * len(rows),
    )


def table_of_rows(
    rows: _Rows,
    returned: _Rows,
    *,
    recursive: bool,
    timesteps: Sequence[float],
    scales: Sequence[float],
    noises: Sequence[tuple[float, ...]],
    kept: Sequence[tuple[float, float]],
    inference_steps: Sequence[int],
    init_noise_sigma: float,
    start: tuple[float, float],
    unguided: Sequence[float],
) -> SamplerTable:
    """The table of coefficients [step, sample or output, past step]. Raises ValueError where they look back too far.

    returned, unguided, noises, kept: of each step, as in SamplerStep. scales: the input scales.
    inference_steps, init_noise_sigma: as in SamplerTable. start: start_sample and start_noise. recursive: as in
    trace.
    """
    shortened, multiples = _shorten(rows) if recursive else (rows, returned)
    steps = tuple(
        SamplerStep(
            timestep=float(timesteps[k]),
            input_scale=scales[k],
            samples=_newest_first(shortened[k, 0, : k + 1]),
            outputs=_newest_first(shortened[k, 1, : k + 1]),
            noises=noises[k],
            kept=kept[k],
            returned=float(multiples[k]),
            unguided=unguided[k],
        )
        for k in range(len(rows))
    )
    past_samples = max(len(step.samples) for step in steps) - 1
    past_outputs = max(len(step.outputs) for step in steps) - 1
    if max(past_samples, past_outputs) > _LONGEST_HISTORY:
        raise ValueError(f"its scheduler looks back more than {_LONGEST_HISTORY} steps")
    return SamplerTable(steps, tuple(inference_steps), init_noise_sigma, *start, past_samples, past_outputs)


def _start(scheduler: Any, first: torch.Tensor) -> tuple[float, float]:
    clean, noise = torch.eye(2, dtype=torch.float64).unsqueeze(1)
    both = scheduler.add_noise(clean, noise, first)[0]
    return float(both[0]), float(both[1])


def _rows(
    scheduler: Any, timesteps: torch.Tensor, following: torch.Tensor, step_arguments: Mapping[str, Any]
) -> tuple[list[float], _Rows, list[tuple[float, ...]], list[tuple[float, float]]]:
    """Input scales, coefficients [step, sample or output, past step], noise coefficients, coefficients of kept parts.

    `following` are the timesteps after each, as far as the schedule has them.
    """
    n = len(timesteps)
    inputs = torch.zeros(n, 2 + _DRAWS, 2 * n + _DRAWS + _PROBES, dtype=torch.float64)
    k = torch.arange(n)
    inputs[k, 0, k] = 1.0
    inputs[k, 1, n + k] = 1.0
    inputs[:, 2:, 2 * n : 2 * n + _DRAWS] = torch.eye(_DRAWS, dtype=torch.float64)
    probes = torch.randn(n, 2 + _DRAWS, _PROBES, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    inputs[:, :, -_PROBES:] = probes.double() * _PROBE_SCALE

    scales: list[float] = []
    results = np.empty((n, inputs.shape[-1]))
    draws: list[int] = []
    kept: list[tuple[float, float]] = []
    draws_noise = "generator" in inspect.signature(scheduler.step).parameters
    for step, t in enumerate(timesteps):
        sample, output, *columns = inputs[step].unsqueeze(1)
        scaled = scheduler.scale_model_input(sample, t)
        scales.append(float(scaled[0, step]))
        if not torch.allclose(scaled, sample * scales[step], rtol=1e-6, atol=0):
            raise ValueError("its scheduler's scale_model_input isn't a factor")
        noise = _NoiseFromColumns(columns)
        with noise if draws_noise else nullcontext():
            result = scheduler.step(output, t, sample, return_dict=False, **step_arguments)[0][0]
        if not (isfinite(scales[step]) and result.isfinite().all()):
            raise ValueError(f"its scheduler's coefficients at timestep {float(t):g} aren't finite")
        results[step] = result.numpy()
        draws.append(noise.drawn)
        kept.append(_start(scheduler, following[step : step + 1]) if step < len(following) else (1.0, 0.0))
        if not all(map(isfinite, kept[-1])):
            raise ValueError(f"its scheduler's noise level after timestep {float(t):g} isn't finite")

    rows = results[:, : 2 * n].reshape(n, 2, n)
    noises = results[:, 2 * n : 2 * n + _DRAWS]
    _check_linear(rows, noises, inputs[:, :, -_PROBES:].numpy(), results[:, -_PROBES:])
    return scales, rows, [tuple(map(float, noises[k, : draws[k]])) for k in range(n)], kept


def _check_linear(rows: _Rows, noises: _Rows, probes: _Rows, results: _Rows) -> None:
    """Raise ValueError unless the rows reproduce the scheduler's results for the random columns."""
    terms = np.einsum("kij,jip->kp", rows, probes[:, :2]) + np.einsum("ki,kip->kp", noises, probes[:, 2:])
    scale = np.einsum("kij,jip->kp", np.abs(rows), np.abs(probes[:, :2])) + np.abs(results)
    if (np.abs(terms - results) > 1e-5 * scale.max(axis=1, keepdims=True)).any():
        raise ValueError("its scheduler isn't linear in sample, model output and noise (does it clip or threshold?)")


def _shorten(rows: _Rows) -> tuple[_Rows, _Rows]:
    """Shorten rows by subtracting multiples of the row before, using that x[k] is the result of step k-1.

    A corrector's hidden sample reaches back to the start, but always in one direction, so a multiple of the row before
    cancels it.

    Returns:
        The rows, and the multiples. Where x[k] isn't the result of step k-1 (inpainting), the multiple belongs to that
        result, and only the rest of the coefficient to x[k].
    """
    n = len(rows)
    for window in range(_LONGEST_HISTORY):
        shortened = rows.copy()
        multiples = np.zeros(n)
        for k in range(window + 1, n):
            old, before = rows[k, :, : k - window].ravel(), rows[k - 1, :, : k - window].ravel()
            multiple = old @ before / (before @ before) if before.any() else 0.0
            if np.abs(old - multiple * before).max() > _ZERO * np.abs(rows[k]).max():
                break
            shortened[k] -= multiple * rows[k - 1]
            shortened[k, 0, k] += multiple
            multiples[k] = multiple
            shortened[k, :, : k - window] = 0.0
        else:
            return shortened, multiples
    raise ValueError("its scheduler's state doesn't follow from a few past samples and outputs")


def _newest_first(coefficients: _Rows) -> tuple[float, ...]:
    """Coefficients of k, k-1, …, without the zeros at the end."""
    used = np.flatnonzero(np.abs(coefficients) > _ZERO * np.abs(coefficients).max())
    oldest = int(used[0]) if len(used) else len(coefficients) - 1
    return tuple(map(float, coefficients[oldest:][::-1]))
