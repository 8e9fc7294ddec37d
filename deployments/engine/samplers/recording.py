"""Runs a rule of rules.py once on unit vectors and reads its coefficients, as tracing.py does it with schedulers."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import sqrt

import numpy as np
import numpy.typing as npt

from deployments.engine.parameters import SamplerOptions
from deployments.engine.samplers.schedules import NoiseLevels
from deployments.engine.samplers.tracing import SamplerTable, table_of_rows

# what a sample is made of: coefficients of all samples and outputs so far, of unguided outputs and of noises
Row = npt.NDArray[np.float64]


class Recording:
    """The model and the noise, as a rule sees them.

    Attributes:
        sigmas: the noise levels to go through.
        total: the evaluations or steps that the whole schedule has, from where the image begins.
        levels: those of the model.
        eta, s_noise: of the request.
    """

    def __init__(
        self,
        sigmas: Row,
        levels: NoiseLevels,
        prediction_type: str,
        options: SamplerOptions,
        eta: float,
        total: int,
        timesteps: Row | None = None,
    ) -> None:
        """timesteps: of the sigmas, where they don't follow from the levels."""
        self._steps: list[int] = []  # the steps of the evaluations, and which of a step's each is
        self._parts: list[int] = []
        self.sigmas = sigmas
        self.levels = levels
        self.eta = eta
        self.s_noise = options.s_noise
        self.total = total
        self._options = options
        self._prediction_type = prediction_type
        self._timesteps = {} if timesteps is None else dict(zip(sigmas.tolist(), timesteps.tolist(), strict=True))
        self._most = 2 * (max(total, len(sigmas)) + 1)  # evaluations: no rule makes more than two of a step
        self._rows: list[Row] = []  # of the samples that were evaluated
        self._levels: list[tuple[float, float]] = []  # their sigmas and timesteps
        self._noises = 0
        self._drawn: list[int] = []  # how many noises there were at each evaluation

    @property
    def start(self) -> Row:
        """The sample that a rule begins with: noise of the first noise level."""
        return self._unit(4 * self._most) * float(self.sigmas[0])

    def steps(self) -> Iterator[tuple[int, float, float]]:
        """Each step's number and the noise levels from which and to which it goes."""
        for i, (sigma, to) in enumerate(pairwise(self.sigmas.tolist())):
            yield i, sigma, to

    def evaluate(self, x: Row, sigma: float, step: int, part: int = 0) -> tuple[Row, Row]:
        """Ask the model: the sample, as it is to be used from here on, and the clean one that the model expects.

        step: of `steps`. part: inference steps by which the evaluation comes after the step's first.
        """
        k = len(self._rows)
        self._rows.append(x)
        timestep = self._timesteps.get(sigma)
        self._levels.append((sigma, self.levels.timestep(sigma) if timestep is None else timestep))
        self._steps.append(step)
        self._parts.append(part)
        self._drawn.append(self._noises)
        sample = self._unit(k)
        return sample, self._denoised(sample, self._unit(self._most + k))

    def unguided(self, x: Row) -> Row:
        """What the model expected of sample x just now without guidance."""
        return self._denoised(x, self._unit(2 * self._most + len(self._rows) - 1))

    def _denoised(self, x: Row, output: Row) -> Row:
        sigma = self._levels[-1][0]
        if self._prediction_type == "v_prediction":
            return x / (sigma**2 + 1) - sigma / sqrt(sigma**2 + 1) * output
        return output if self._prediction_type == "sample" else x - sigma * output

    def noise(self, scale: float) -> Row:
        """Fresh noise; none where it has no weight."""
        if scale * self.s_noise == 0:
            return np.zeros(4 * self._most + 1)
        self._noises += 1
        return self._unit(3 * self._most + self._noises - 1) * scale * self.s_noise

    def ancestral(self, sigma: float, to: float) -> tuple[float, float]:
        """The noise level to go down to, and that of the noise to add then (k-diffusion's get_ancestral_step)."""
        up = min(to, self.eta * sqrt(to**2 * (sigma**2 - to**2) / sigma**2))
        return sqrt(to**2 - up**2), up

    def churned(self, x: Row, sigma: float) -> tuple[Row, float]:
        """A sample with more noise, and its noise level (arXiv:2206.00364, algorithm 2)."""
        options = self._options
        most = float("inf") if options.s_tmax is None else options.s_tmax
        gamma = min(options.s_churn / self.total, sqrt(2) - 1) if options.s_tmin <= sigma <= most else 0.0
        hat = sigma * (1 + gamma)
        return x + self.noise(sqrt(hat**2 - sigma**2)), hat

    def table(self, last: Row, *, numbers: Sequence[int], stop: int, recursive: bool, takes_over: bool) -> SamplerTable:
        """The rule's table.

        Args:
            last: the sample that it ended with.
            numbers: the inference step that each step is.
            stop: the step before which it is cut off.
            recursive, takes_over: as in tracing.trace.

        Raises:
            ValueError: its coefficients aren't finite, or look back too far.
        """
        most = self._most
        n = sum(step < stop for step in self._steps)
        ends = np.stack([*self._rows[1:], last])[:n]
        rows = np.stack([ends[:, :n], ends[:, most : most + n]], axis=1)
        noises = ends[:, 3 * most : 3 * most + self._noises]
        multiples = _forget_old_noise(rows, noises, [*self._drawn[1:], self._noises][:n])
        levels = [*self._levels, (0.0, 0.0)]
        if not np.isfinite(ends).all():
            raise ValueError("its coefficients aren't finite")
        first_noise = float(np.linalg.norm(self._rows[0][3 * most :]))
        return table_of_rows(
            rows,
            multiples,
            recursive=recursive,
            timesteps=[timestep for _, timestep in levels[:n]],
            scales=[1 / sqrt(sigma**2 + 1) for sigma, _ in levels[:n]],
            noises=[tuple(row[row != 0].tolist()) for row in noises],
            kept=[(1.0, sigma) for sigma, _ in levels[1 : n + 1]],
            inference_steps=[numbers[step] + part for step, part in zip(self._steps[:n], self._parts, strict=False)],
            init_noise_sigma=first_noise,
            start=(1.0, 0.0) if takes_over else (1.0, first_noise),
            unguided=[float(row[2 * most + k]) for k, row in enumerate(ends)],
        )

    def _unit(self, column: int) -> Row:
        unit = np.zeros(4 * self._most + 1)
        unit[column] = 1.0
        return unit


def _forget_old_noise(rows: Row, noises: Row, drawn: list[int]) -> Row:
    """Write noise that an earlier step drew as what it made of that step's samples; changes rows and noises.

    Args:
        rows: [step, sample or output, past step]. noises: [step, noise].
        drawn: how many noises there are at each step's end.

    Returns:
        The part of each step's newest sample that stands for the result of the step before.
    """
    multiples = np.zeros(len(rows))
    for k in range(1, len(rows)):
        for column in np.flatnonzero(noises[k, : drawn[k - 1]]):
            multiple = noises[k, column] / noises[k - 1, column]
            rows[k] -= multiple * rows[k - 1]
            noises[k] -= multiple * noises[k - 1]
            noises[k, column] = 0.0
            rows[k, 0, k] += multiple
            multiples[k] += multiple
    return multiples
