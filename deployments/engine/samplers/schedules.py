"""The noise levels that AUTOMATIC1111's web UI and its kin run a sampler on, by the name of their schedule.

Noise levels are sigmas of k-diffusion's: a noisy sample is clean + sigma * noise. A schedule falls from the highest to,
with few exceptions, 0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from deployments.engine.errors import InvalidRequest

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class NoiseLevels:
    """The noise levels that a model was trained on.

    Attributes:
        sigmas: of its timesteps, rising.
        timesteps: what the UNet calls them.
        between: whether the UNet is asked for what lies between two of them, or for the nearest one.
    """

    sigmas: Floats
    timesteps: Floats
    between: bool = True

    def timestep(self, sigma: float) -> float:
        """The UNet's timestep for a noise level (k-diffusion's sigma_to_t)."""
        places = np.abs(np.log(sigma) - np.log(self.sigmas))
        if not self.between:
            return float(self.timesteps[int(places.argmin())])
        return float(np.interp(np.log(sigma), np.log(self.sigmas), self.timesteps))

    def sigma(self, timestep: Floats) -> Floats:
        """The noise levels of timesteps, between those of training too (k-diffusion's t_to_sigma)."""
        levels: Floats = np.exp(np.interp(timestep, self.timesteps, np.log(self.sigmas)))
        return levels

    @property
    def least(self) -> float:
        """Above 0."""
        return float(self.sigmas[0])

    @property
    def most(self) -> float:
        """That of pure noise, nearly."""
        return float(self.sigmas[-1])


def schedule(name: str | None, steps: int, levels: NoiseLevels) -> Floats:
    """The noise levels of a schedule of registry.WEBUI_SCHEDULES, "Uniform" by itself: `steps` + 1, or nearly.

    Raises InvalidRequest for too many steps.
    """
    sigmas = np.asarray(_SCHEDULES[name](steps, levels), dtype=np.float64)
    if len(sigmas) < 2:
        raise InvalidRequest(f"{name} has no {steps} steps on this checkpoint", "steps")
    return sigmas


def _uniform(steps: int, levels: NoiseLevels) -> Floats:
    first, last = levels.timesteps[[-1, 0]]
    return _to_zero(levels.sigma(np.linspace(first, last, steps)))


def _sgm_uniform(steps: int, levels: NoiseLevels) -> Floats:
    first, last = levels.timesteps[[-1, 0]]
    return _to_zero(levels.sigma(np.linspace(first, last, steps + 1)[:-1]))


def _karras(steps: int, levels: NoiseLevels) -> Floats:
    """arXiv:2206.00364, equation 5."""
    return karras(steps, levels.least, levels.most)


def karras(steps: int, least: float, most: float, rho: float = 7.0) -> Floats:
    """The same between any two noise levels."""
    roots = np.linspace(most ** (1 / rho), least ** (1 / rho), steps)
    return _to_zero(roots**rho)


def _exponential(steps: int, levels: NoiseLevels) -> Floats:
    """Evenly in log sigma; k-diffusion's polyexponential one is the same with the web UI's rho of 1."""
    return _to_zero(np.exp(np.linspace(np.log(levels.most), np.log(levels.least), steps)))


def _kl_optimal(steps: int, levels: NoiseLevels) -> Floats:
    """Align Your Steps (arXiv:2404.14507), the solution for Gaussians. It ends above 0."""
    sigmas: Floats = np.tan(np.linspace(np.arctan(levels.most), np.arctan(levels.least), steps + 1))
    return sigmas


def _simple(steps: int, levels: NoiseLevels) -> Floats:
    every = len(levels.sigmas) / steps
    return _to_zero([levels.sigmas[-(1 + int(step * every))] for step in range(steps)])


def _ddim(steps: int, levels: NoiseLevels) -> Floats:
    return _to_zero(levels.sigmas[1 :: max(len(levels.sigmas) // steps, 1)][::-1])


def _beta(steps: int, levels: NoiseLevels) -> Floats:
    """arXiv:2407.12173, with the web UI's alpha and beta; it spaces sigmas where the paper spaces timesteps."""
    fractions = betaincinv(0.6, 0.6, 1 - np.linspace(0, 1, steps))
    return _to_zero(levels.least + fractions * (levels.most - levels.least))


def _turbo(steps: int, levels: NoiseLevels) -> Floats:
    timesteps = np.rint(np.arange(1, steps + 1)[::-1] * (1000 / steps) - 1).clip(0, 999)
    return _to_zero(levels.sigma(timesteps))


def _smoothstep(steps: int, levels: NoiseLevels) -> Floats:
    fractions = 1 - np.arange(steps) / steps
    smooth = fractions**2 * (3 - 2 * fractions)
    return _to_zero(levels.sigma(np.floor(smooth * levels.timesteps[-1] + 0.5)))


def _to_zero(sigmas: Floats | Sequence[float]) -> Floats:
    return np.append(sigmas, 0.0)


def _searched(sigmas: Sequence[float]) -> Callable[[int, NoiseLevels], Floats]:
    """Noise levels that were searched for. For another number of steps they are interpolated in log sigma."""

    def interpolated(steps: int, levels: NoiseLevels) -> Floats:
        rising = np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(sigmas)), np.log(sigmas[::-1]))
        return _to_zero(np.exp(rising)[::-1])

    return interpolated


# arXiv:2404.14507 and its page; what is found as arXiv:2405.11326 does; Forge's of 32 steps. For SD1.5 and for SDXL.
_ALIGN = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
_ALIGN_XL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
_GITS = (14.615, 4.617, 2.507, 1.236, 0.702, 0.402, 0.240, 0.156, 0.104, 0.094, 0.029)
_GITS_XL = (14.615, 4.734, 2.567, 1.529, 0.987, 0.652, 0.418, 0.268, 0.179, 0.127, 0.029)
_ALIGN_32 = (
    *(14.615, 11.23951352, 8.64363081, 6.64729424, 5.57250862, 4.71648546, 3.99196065, 3.5195609),
    *(3.13490466, 2.79228788, 2.48773628, 2.21663865, 1.97508351, 1.7793172, 1.61475335, 1.46540953),
    *(1.314849, 1.16642497, 1.03475547, 0.91573744, 0.80748169, 0.71202361, 0.621739, 0.53065202),
    *(0.4529096, 0.37491455, 0.27461819, 0.2011529, 0.14105873, 0.06682881, 0.03166121, 0.015),
)
_ALIGN_32_XL = (
    *(14.615, 11.1491618, 8.50522127, 6.48827151, 5.43707402, 4.60398619, 3.89854704, 3.27407457),
    *(2.74396527, 2.29968659, 1.95448514, 1.67108715, 1.42878152, 1.23181009, 1.06789649, 0.92579443),
    *(0.80290886, 0.69660121, 0.60436903, 0.52852552, 0.46773344, 0.41393379, 0.36258186, 0.31008517),
    *(0.26518925, 0.22326461, 0.17653877, 0.13959192, 0.10587381, 0.05519369, 0.02877334, 0.015),
)

_SCHEDULES: Mapping[str | None, Callable[[int, NoiseLevels], Floats]] = {
    None: _uniform,
    "karras": _karras,
    "exponential": _exponential,
    "polyexponential": _exponential,
    "sgm_uniform": _sgm_uniform,
    "kl_optimal": _kl_optimal,
    "align_your_steps": _searched(_ALIGN),
    "simple": _simple,
    "normal": _uniform,
    "ddim": _ddim,
    "beta": _beta,
    "turbo": _turbo,
    "align_your_steps_gits": _searched(_GITS),
    "align_your_steps_11": _searched(_ALIGN),
    "align_your_steps_32": _searched(_ALIGN_32),
    "align_your_steps_xl": _searched(_ALIGN_XL),
    "align_your_steps_gits_xl": _searched(_GITS_XL),
    "align_your_steps_11_xl": _searched(_ALIGN_XL),
    "align_your_steps_32_xl": _searched(_ALIGN_32_XL),
    "smoothstep": _smoothstep,
}
