"""The update rules of the samplers that AUTOMATIC1111's web UI has: how each goes from one noise level to the next.

A rule is a loop, written as the paper or k-diffusion has it, over a Recording, which answers for the model and the
noise with unit vectors: samples are rows of coefficients, of which recording.py makes a table. Samples are
k-diffusion's, clean + sigma * noise. `run.evaluate` gives the sample back beside what the model makes of it, and only
that one may be used further. A rule ends with the last sample.
"""

from collections.abc import Callable, Mapping
from math import exp, expm1, log, prod, sqrt

import numpy as np
from numpy.polynomial import Polynomial

from deployments.engine.samplers.recording import Recording, Row
from deployments.engine.samplers.schedules import NoiseLevels, karras


def _euler(run: Recording, x: Row) -> Row:
    for i, sigma, to in run.steps():
        x, hat = run.churned(x, sigma)
        x, denoised = run.evaluate(x, hat, i)
        x = x + (x - denoised) / hat * (to - hat)
    return x


def _euler_ancestral(run: Recording, x: Row) -> Row:
    for i, sigma, to in run.steps():
        x, denoised = run.evaluate(x, sigma, i)
        down, up = run.ancestral(sigma, to)
        x = denoised + (x - denoised) / sigma * down + run.noise(up)
    return x


def _euler_cfgpp(run: Recording, x: Row) -> Row:
    """As DDIM and Euler, but that the unguided output says where the noise lies (arXiv:2406.08070)."""
    for i, sigma, to in run.steps():
        x, denoised = run.evaluate(x, sigma, i)
        down, up = run.ancestral(sigma, to)
        x = denoised + (x - run.unguided(x)) / sigma * down + run.noise(up)
    return x


def _heun_step(run: Recording, x: Row, sigma: float, to: float, step: int) -> Row:
    """One step of the trapezoidal rule: two evaluations, but one for the last step."""
    x, denoised = run.evaluate(x, sigma, step)
    slope = (x - denoised) / sigma
    if to == 0:
        return x + slope * (to - sigma)
    ahead, denoised_ahead = run.evaluate(x + slope * (to - sigma), to, step)
    return x + (slope + (ahead - denoised_ahead) / to) / 2 * (to - sigma)


def _midpoint_step(run: Recording, x: Row, sigma: float, to: float, step: int) -> Row:
    """One step by the slope halfway, in log sigma: two evaluations, but one for the last step."""
    x, denoised = run.evaluate(x, sigma, step)
    slope = (x - denoised) / sigma
    if to == 0:
        return x + slope * (to - sigma)
    mid = sqrt(sigma * to)
    half, denoised_half = run.evaluate(x + slope * (mid - sigma), mid, step)
    return x + (half - denoised_half) / mid * (to - sigma)


def _heun(run: Recording, x: Row) -> Row:
    for i, sigma, to in run.steps():
        x, hat = run.churned(x, sigma)
        x = _heun_step(run, x, hat, to, i)
    return x


def restart_path(sigmas: Row, levels: NoiseLevels) -> Row:
    """The noise levels of Restart, which go up again on their way (arXiv:2306.14878, the web UI's choice of where)."""
    steps = len(sigmas) - 1
    if steps < 20:
        return sigmas
    times, length = (1, 9) if steps < 36 else (2, steps // 4)
    path = karras(steps - length * times, float(sigmas[-2]), float(sigmas[0]))
    low, high = int(np.abs(path - 0.1).argmin()), int(np.abs(path - 2.0).argmin())
    if high >= low:
        return path
    again = karras(length + 1, float(path[low]), float(path[high]))[:-1]
    return np.concatenate([path[: low + 1], *[again] * times, path[low + 1 :]])


def _restart(run: Recording, x: Row) -> Row:
    for i, sigma, to in run.steps():
        x = x + run.noise(sqrt(to**2 - sigma**2)) if to >= sigma else _heun_step(run, x, sigma, to, i)
    return x


def _dpm_2(run: Recording, x: Row) -> Row:
    for i, sigma, to in run.steps():
        x, hat = run.churned(x, sigma)
        x = _midpoint_step(run, x, hat, to, i)
    return x


def _dpm_2_ancestral(run: Recording, x: Row) -> Row:
    for i, sigma, to in run.steps():
        down, up = run.ancestral(sigma, to)
        x = _midpoint_step(run, x, sigma, down, i)
        if down:
            x = x + run.noise(up)
    return x


def _lms(run: Recording, x: Row) -> Row:
    """Adams-Bashforth of order 4 over unevenly spaced noise levels; k-diffusion integrates the same polynomials."""
    slopes: list[Row] = []
    for i, sigma, to in run.steps():
        x, denoised = run.evaluate(x, sigma, i)
        slopes = [(x - denoised) / sigma, *slopes[:3]]
        known = run.sigmas[i::-1][: len(slopes)].tolist()
        for j, slope in enumerate(slopes):
            others = [level for k, level in enumerate(known) if k != j]
            share = prod((Polynomial([-level, 1]) / (known[j] - level) for level in others), start=Polynomial([1]))
            whole = share.integ()
            x = x + slope * float(whole(to) - whole(sigma))
    return x


_ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def _ipndm(run: Recording, x: Row) -> Row:
    slopes: list[Row] = []
    for i, sigma, to in run.steps():
        x, denoised = run.evaluate(x, sigma, i)
        slopes = [(x - denoised) / sigma, *slopes[:3]]
        x = x + _combined(slopes) * (to - sigma)
    return x


def _plms(run: Recording, x: Row) -> Row:
    """Likewise, but that the first step looks ahead."""
    slopes: list[Row] = []
    for i, sigma, to in run.steps():
        x, denoised = run.evaluate(x, sigma, i)
        slopes = [(x - denoised) / sigma, *slopes[:3]]
        if i:
            x = x + _combined(slopes) * (to - sigma)
        else:
            ahead, denoised_ahead = run.evaluate(x + slopes[0] * (to - sigma), to, i)
            x = x + (slopes[0] + (ahead - denoised_ahead) / to) / 2 * (to - sigma)
    return x


def _combined(slopes: list[Row]) -> Row:
    weights = _ADAMS_BASHFORTH[len(slopes) - 1]
    return np.asarray(np.tensordot(weights, np.stack(slopes), axes=1), dtype=np.float64)


def _dpmpp_2s_ancestral(run: Recording, x: Row) -> Row:
    for i, sigma, to in run.steps():
        x, denoised = run.evaluate(x, sigma, i)
        down, up = run.ancestral(sigma, to)
        if down == 0:
            x = denoised
        else:
            mid = sqrt(sigma * down)
            _, denoised_mid = run.evaluate(_towards(x, denoised, mid / sigma), mid, i)
            x = _towards(x, denoised_mid, down / sigma)
        x = x + run.noise(up)
    return x


def _dpmpp_sde(run: Recording, x: Row) -> Row:
    """Its two noises in a step are two stretches of one Brownian path over sigma, of which the second has the first."""
    for i, sigma, to in run.steps():
        x, denoised = run.evaluate(x, sigma, i)
        if to == 0:
            x = denoised
            continue
        mid = sqrt(sigma * to)
        down, up = run.ancestral(sigma, mid)
        first = run.noise(1.0)
        _, denoised_mid = run.evaluate(_towards(x, denoised, down / sigma) + up * first, mid, i)
        down, up = run.ancestral(sigma, to)
        whole = (sqrt(sigma - mid) * first + sqrt(mid - to) * run.noise(1.0)) / sqrt(sigma - to)
        x = _towards(x, denoised_mid, down / sigma) + up * whole
    return x


def _towards(x: Row, denoised: Row, ratio: float) -> Row:
    """The exact solution while what the model expects stays the same. ratio: of the noise levels."""
    return ratio * x + (1 - ratio) * denoised


def _dpmpp_2m(run: Recording, x: Row) -> Row:
    last: tuple[float, Row] | None = None
    for i, sigma, to in run.steps():
        x, denoised = run.evaluate(x, sigma, i)
        expected = denoised
        if last is not None and to > 0:
            before, denoised_before = last
            ratio = log(before / sigma) / log(sigma / to)
            expected = denoised + (denoised - denoised_before) / (2 * ratio)
        x = _towards(x, expected, to / sigma)
        last = sigma, denoised
    return x


def _dpmpp_2m_sde(run: Recording, x: Row, *, heun: bool = False) -> Row:
    last: tuple[float, Row] | None = None
    for i, sigma, to in run.steps():
        x, denoised = run.evaluate(x, sigma, i)
        if to == 0:
            x = denoised
            continue
        h = log(sigma / to)
        both = h * (1 + run.eta)
        x = to / sigma * exp(-run.eta * h) * x - expm1(-both) * denoised
        if last is not None:
            before, denoised_before = last
            weight = expm1(-both) / both + 1 if heun else -expm1(-both) / 2
            x = x + weight * h / log(before / sigma) * (denoised - denoised_before)
        x = x + run.noise(to * sqrt(-expm1(-2 * run.eta * h)))
        last = sigma, denoised
    return x


def _dpmpp_2m_sde_heun(run: Recording, x: Row) -> Row:
    return _dpmpp_2m_sde(run, x, heun=True)


def _dpmpp_3m_sde(run: Recording, x: Row) -> Row:
    past: list[tuple[float, Row]] = []  # the steps' lengths in -log sigma and what was expected, newest first
    for i, sigma, to in run.steps():
        x, denoised = run.evaluate(x, sigma, i)
        if to == 0:
            x = denoised
            continue
        h = log(sigma / to)
        both = h * (1 + run.eta)
        x = exp(-both) * x - expm1(-both) * denoised
        phi_2 = expm1(-both) / both + 1
        if past:
            (h_1, denoised_1), *older = past
            slope = (denoised - denoised_1) * h / h_1
            if older:
                h_2, denoised_2 = older[0]
                before = (denoised_1 - denoised_2) * h / h_2
                bend = (slope - before) * h / (h_1 + h_2)
                x = x + phi_2 * (slope + bend * h_1 / h) - (phi_2 / both - 0.5) * bend
            else:
                x = x + phi_2 * slope
        x = x + run.noise(to * sqrt(-expm1(-2 * run.eta * h)))
        past = [(h, denoised), *past[:1]]
    return x


def dpm_fast_path(sigmas: Row, levels: NoiseLevels) -> Row:
    """The noise levels between which DPM-Solver-fast takes steps of up to three evaluations; it ends above 0."""
    return np.asarray(np.geomspace(sigmas[0], levels.least, (len(sigmas) - 1) // 3 + 2), dtype=np.float64)


def dpm_fast_orders(evaluations: int) -> list[int]:
    """How many evaluations each of its steps has."""
    full, rest = divmod(evaluations, 3)
    return [3] * (full - 1) + [2, 1] if rest == 0 else [3] * full + [rest]


def _dpm_fast(run: Recording, x: Row) -> Row:
    """DPM-Solver-1, 2 and 3 (arXiv:2206.00927, algorithms 1 and 2, appendix D)."""
    for order, (i, sigma, to) in zip(dpm_fast_orders(run.total)[1 - len(run.sigmas) :], run.steps(), strict=True):
        down, _ = run.ancestral(sigma, to)
        down = max(down, float(run.sigmas[-1]))
        up = sqrt(to**2 - down**2)
        h = log(sigma / down)

        def solved(fraction: float, eps: Row, x: Row, sigma: float = sigma, h: float = h) -> Row:
            return x - sigma * exp(-fraction * h) * expm1(fraction * h) * eps

        x, denoised = run.evaluate(x, sigma, i)
        eps = (x - denoised) / sigma
        if order == 1:
            x = solved(1.0, eps, x)
        elif order == 2:
            mid = sigma * exp(-h / 2)
            half, denoised_half = run.evaluate(solved(1 / 2, eps, x), mid, i, 1)
            x = solved(1.0, eps, x) - down * expm1(h) * ((half - denoised_half) / mid - eps)
        else:
            one, two = sigma * exp(-h / 3), sigma * exp(-2 * h / 3)
            third, expected = run.evaluate(solved(1 / 3, eps, x), one, i, 1)
            bend = (third - expected) / one - eps
            ahead = solved(2 / 3, eps, x) - two * 2 * (expm1(2 * h / 3) / (2 * h / 3) - 1) * bend
            third, expected = run.evaluate(ahead, two, i, 2)
            bend = (third - expected) / two - eps
            x = solved(1.0, eps, x) - down * 3 / 2 * (expm1(h) / h - 1) * bend
        x = x + run.noise(up)
    return x


def _unipc(run: Recording, x: Row) -> Row:
    """UniPC of order 3, B1(h), of what the model expects, with lower orders at both ends."""
    count = len(run.sigmas) - 1
    x, denoised = run.evaluate(x, float(run.sigmas[0]), 0)
    past = [denoised]  # newest first
    for i in range(1, count + 1):
        sigma, to = run.sigmas[i - 1], run.sigmas[i]
        order = min(3, i, count + 1 - i)
        hh = -log(sigma / to)
        nodes = [log(run.sigmas[i - 1 - k] / sigma) / hh for k in range(1, order)]
        differences = [(past[k] - past[0]) / node for k, node in enumerate(nodes, start=1)]
        moments, phi, factorial = [], expm1(hh) / hh - 1, 1
        for k in range(1, order + 1):
            moments.append(phi * factorial / hh)
            factorial *= k + 1
            phi = phi / hh - 1 / factorial
        system = np.vander([*nodes, 1.0], order, increasing=True).T
        plain = to / sigma * x - expm1(hh) * past[0]
        ahead: Row = plain
        if order > 1:
            weights = [0.5] if order == 2 else np.linalg.solve(system[:-1, :-1], moments[:-1])
            ahead = plain - hh * sum(weight * each for weight, each in zip(weights, differences, strict=True))
        if i == count:
            return ahead
        ahead, denoised = run.evaluate(ahead, float(to), i)
        weights = [0.5] if order == 1 else np.linalg.solve(system, moments)
        corrections = [*differences, denoised - past[0]]
        x = plain - hh * sum(weight * each for weight, each in zip(weights, corrections, strict=True))
        past = [denoised, *past[:2]]
    return x


def _lcm(run: Recording, x: Row) -> Row:
    """As consistency models sample, with the boundary that LCMs were distilled with (arXiv:2310.04378)."""
    for i, sigma, to in run.steps():
        x, denoised = run.evaluate(x, sigma, i)
        scaled = 10 * run.levels.timestep(sigma)
        kept, expected = 0.25 / (scaled**2 + 0.25), scaled / sqrt(scaled**2 + 0.25)
        x = kept * x + expected * denoised + run.noise(to)
    return x


RULES: Mapping[str, Callable[[Recording, Row], Row]] = {
    "euler": _euler,
    "euler_ancestral": _euler_ancestral,
    "euler_cfgpp": _euler_cfgpp,
    "heun": _heun,
    "restart": _restart,
    "dpm_2": _dpm_2,
    "dpm_2_ancestral": _dpm_2_ancestral,
    "lms": _lms,
    "ipndm": _ipndm,
    "plms": _plms,
    "dpmpp_2s_ancestral": _dpmpp_2s_ancestral,
    "dpmpp_sde": _dpmpp_sde,
    "dpmpp_2m": _dpmpp_2m,
    "dpmpp_2m_sde": _dpmpp_2m_sde,
    "dpmpp_2m_sde_heun": _dpmpp_2m_sde_heun,
    "dpmpp_3m_sde": _dpmpp_3m_sde,
    "dpm_fast": _dpm_fast,
    "unipc": _unipc,
    "lcm": _lcm,
}

# rules that choose other noise levels within those of the schedule
PATHS: Mapping[str, Callable[[Row, NoiseLevels], Row]] = {"restart": restart_path, "dpm_fast": dpm_fast_path}
