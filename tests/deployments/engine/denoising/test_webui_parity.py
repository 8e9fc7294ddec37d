"""Lanes of the web UI's samplers against k-diffusion's loop over the same UNet: alone, and among unlike lanes."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from deployments.engine.engine import Engine
from deployments.engine.types import DenoiseRequest
from tests.deployments.engine.denoising.parity import assert_close, encode, prompts_for, seeded
from tests.deployments.engine.denoising.test_guidance_parity import SIZE, RunTogether, alone_and_together, engine, lane
from tests.deployments.engine.samplers import k_diffusion

__all__ = ["engine"]

CFG_PP = {"webui_ddim_cfgpp": 1 / 12.5, "webui_euler_a_cfgpp": 1.0}

LANES = [
    lane("karras", "webui_dpmpp_2m_karras"),
    lane("brownian", "webui_dpmpp_sde_karras", steps=4),
    lane("third order", "webui_dpmpp_3m_sde_exponential", steps=6),
    lane("single step", "webui_dpmpp_2s_a_karras", guidance_scale=1.0, steps=4),
    lane("half", "webui_heun", guidance_scale=3.0),
    lane("fast", "webui_dpm_fast", steps=7),
    lane("less noise", "webui_euler_a", eta=0.5),
    lane("churned", "webui_dpm2_karras", s_churn=2.0, s_tmax=5.0, steps=4),
    lane("ddim", "webui_ddim_cfgpp", steps=10),
    lane("euler", "webui_euler_a_cfgpp_karras", guidance_scale=1.4),
]


def guided(pipe: Any, request: DenoiseRequest) -> tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]:
    """The UNet's guided and unguided outputs as functions of its input and timestep."""
    prompt, negative = (
        None
        if text is None
        else pipe.encode_prompt(text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[0]
        for text in prompts_for(request)
    )
    sampler = next((name for name in CFG_PP if request.sampler.startswith(name)), "")
    scale = request.guidance_scale * CFG_PP.get(sampler, 1.0)

    def output(text: torch.Tensor, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = pipe.unet(x.float(), t.float().reshape(-1), encoder_hidden_states=text).sample
        return result.double()

    def unguided(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return output(prompt if negative is None else negative, x, t)

    def with_guidance(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        without = unguided(x, t)
        return without if negative is None else without + scale * (output(prompt, x, t) - without)

    return with_guidance, unguided


def by_k_diffusion(pipe: Any, request: DenoiseRequest) -> torch.Tensor:
    generator = seeded(request)

    def draw() -> torch.Tensor:
        return torch.randn((1, 4, SIZE // 8, SIZE // 8), generator=generator, dtype=torch.float32).double()

    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    alphas = scheduler.alphas_cumprod.double()
    unet, other = guided(pipe, request)
    model, unguided = k_diffusion.denoiser(unet, alphas), k_diffusion.denoiser(other, alphas)
    sampling = k_diffusion.module("sampling")
    name = next(name for name in (*CFG_PP, *sorted(k_diffusion.FUNCTIONS, reverse=True)) if name in request.sampler)
    x = draw()
    if name == "webui_ddim_cfgpp":  # arXiv:2406.08070, algorithm 2
        scheduler.set_timesteps(request.steps)
        for t, to in pairwise(scheduler.timesteps):
            clean = (x - (1 - alphas[t]).sqrt() * unet(x, t)) / alphas[t].sqrt()
            x = alphas[to].sqrt() * clean + (1 - alphas[to]).sqrt() * other(x, t)
        return x[0].float()
    discards = name in k_diffusion.FUNCTIONS and k_diffusion.FUNCTIONS[name][2]
    count, ends = request.steps + discards, (float(model.sigma_min), float(model.sigma_max))
    if request.sampler.endswith("_karras"):
        sigmas = sampling.get_sigmas_karras(count, *ends).double()
    elif request.sampler.endswith("_exponential"):
        sigmas = sampling.get_sigmas_exponential(count, *ends).double()
    else:
        sigmas = model.get_sigmas(count).double()
    sigmas = torch.cat([sigmas[:-2], sigmas[-1:]]) if discards else sigmas
    x = x * sigmas[0]
    if name == "webui_euler_a_cfgpp":
        for sigma, to in pairwise(sigmas):
            down, up = sampling.get_ancestral_step(sigma, to)
            away = (x - unguided(x, sigma[None], cond=None)) / sigma
            x = model(x, sigma[None], cond=None) + away * down
            x = x + draw() * up if up > 0 else x
        return x[0].float()
    options = {"eta": request.eta} if request.eta is not None else {}
    if request.s_churn:
        options |= {"s_churn": request.s_churn, "s_tmax": request.s_tmax}
    churned = iter(sigma <= (request.s_tmax or 0) for sigma in sigmas.tolist())
    with k_diffusion.randn_like(lambda: draw() if request.s_churn and next(churned) else torch.zeros_like(x)):
        return k_diffusion.sample(name, model, x, sigmas.tolist(), draw, **options)[0].float()


@torch.no_grad()
def test_lanes(engine: Engine, run_together: RunTogether, sd15_pipeline: StableDiffusionPipeline) -> None:
    expected = {request.lane_id: by_k_diffusion(sd15_pipeline, request) for request in LANES}
    work = [(request, encode(sd15_pipeline, request)) for request in LANES]
    assert_close(alone_and_together(engine, run_together, work), expected)
