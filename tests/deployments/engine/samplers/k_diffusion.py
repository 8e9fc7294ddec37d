"""k-diffusion's samplers as AUTOMATIC1111's web UI runs them, written down without a look at the engine's own list."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch

# sampler -> k-diffusion's function and what the web UI gives to it, whether it leaves out the last noise level but one,
# and the schedule that "Automatic" is
FUNCTIONS: dict[str, tuple[str, dict[str, Any], bool, str | None]] = {
    "webui_dpmpp_2m": ("sample_dpmpp_2m", {}, False, "karras"),
    "webui_dpmpp_sde": ("sample_dpmpp_sde", {"eta": 1.0}, False, "karras"),
    "webui_dpmpp_2m_sde": ("sample_dpmpp_2m_sde", {"eta": 1.0}, False, "exponential"),
    "webui_dpmpp_2m_sde_heun": ("sample_dpmpp_2m_sde", {"eta": 1.0, "solver_type": "heun"}, False, "exponential"),
    "webui_dpmpp_2s_a": ("sample_dpmpp_2s_ancestral", {"eta": 1.0}, False, "karras"),
    "webui_dpmpp_3m_sde": ("sample_dpmpp_3m_sde", {"eta": 1.0}, True, "exponential"),
    "webui_euler_a": ("sample_euler_ancestral", {"eta": 1.0}, False, None),
    "webui_euler": ("sample_euler", {}, False, None),
    "webui_lms": ("sample_lms", {}, False, None),
    "webui_heun": ("sample_heun", {}, False, None),
    "webui_dpm2": ("sample_dpm_2", {}, True, "karras"),
    "webui_dpm2_a": ("sample_dpm_2_ancestral", {"eta": 1.0}, True, "karras"),
    "webui_dpm_fast": ("sample_dpm_fast", {"eta": 1.0}, False, None),
}


def _append_dims(x: torch.Tensor, dims: int) -> torch.Tensor:
    return x[(...,) + (None,) * (dims - x.ndim)]


@cache
def module(name: str) -> Any:
    """`k_diffusion.<name>` alone: the package itself imports what it trains models with."""
    spec = find_spec("k_diffusion")
    assert spec is not None
    package = ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations or ())
    utils = SimpleNamespace(append_dims=_append_dims)
    package.utils = utils  # type: ignore[attr-defined]
    others = {
        "k_diffusion": package,
        "k_diffusion.utils": utils,
        "torchdiffeq": SimpleNamespace(odeint=None),
        "torchsde": SimpleNamespace(BrownianTree=None),
    }
    with mock.patch.dict(sys.modules, others):
        return import_module(f"k_diffusion.{name}")


Unet = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def denoiser(unet: Unet, alphas_cumprod: torch.Tensor, *, v_prediction: bool = False) -> Any:
    """The web UI's wrapper of a model for k-diffusion."""
    kind = module("external").CompVisVDenoiser if v_prediction else module("external").CompVisDenoiser
    return kind(SimpleNamespace(alphas_cumprod=alphas_cumprod, apply_model=lambda x, t, cond: unet(x, t)))


class BrownianPath:
    """What k-diffusion's noise samplers return: each call is a stretch of one path of Brownian motion over sigma.

    A stretch that begins where the one before began goes on from there.
    """

    def __init__(self, draw: Callable[[], torch.Tensor]) -> None:
        self._draw = draw
        self._begin = self._end = torch.tensor(float("nan"), dtype=torch.float64)
        self._moved = torch.zeros(())

    def __call__(self, sigma: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        if not torch.isclose(self._begin, sigma, rtol=1e-6):
            self._begin, self._end, self._moved = sigma, sigma, torch.zeros(())
        self._moved = self._moved + self._draw() * (self._end - to).sqrt()
        self._end = to
        return self._moved / (self._begin - to).sqrt()


@contextmanager
def randn_like(draw: Callable[[], torch.Tensor]) -> Iterator[None]:
    """k-diffusion's own draws are `draw`'s."""
    sampling = module("sampling")

    class Torch:
        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        def randn_like(self, _: torch.Tensor) -> torch.Tensor:
            return draw()

    with mock.patch.object(sampling, "torch", Torch()):
        yield


def sample(
    name: str, model: Any, x: torch.Tensor, sigmas: Sequence[float], draw: Callable[[], torch.Tensor], **options: Any
) -> torch.Tensor:
    """k-diffusion's function over these noise levels."""
    function, given, _, _ = FUNCTIONS[name]
    given = given | options
    if "sde" in function:
        given["noise_sampler"] = BrownianPath(draw)
    elif "eta" in given:
        given["noise_sampler"] = lambda sigma, to: draw()
    levels = torch.tensor(sigmas, dtype=torch.float64)
    if function in ("sample_dpmpp_2m_sde", "sample_dpmpp_3m_sde") and len(levels) == 2:
        denoised: torch.Tensor = model(x, levels[:1], cond=None)  # k-diffusion 0.1.1 fails with UnboundLocalError
        return denoised
    schedule: tuple[Any, ...] = (levels,)
    if function == "sample_dpm_fast":
        schedule = (float(model.sigma_min), float(levels[0]), len(levels) - 1)
    result: torch.Tensor = getattr(module("sampling"), function)(
        model, x, *schedule, {"cond": None}, disable=True, **given
    )
    return result
