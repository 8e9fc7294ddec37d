"""The engine against diffusers' own pipelines: every sampler, alone and in a batch of unlike lanes.

The reference is what a diffusers user would write: one pipeline call, the scheduler swapped by `from_config`.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

from deployments.engine.engine import Engine
from deployments.engine.request import Conditioning, DenoiseRequest, DenoiseResult

Work = tuple[DenoiseRequest, Conditioning]
RunTogether = Callable[[Engine, list[Work]], list[DenoiseResult]]
Encode = Callable[..., Conditioning]
MakeEngine = Callable[..., Engine]

# sampler -> what a diffusers user calls it, with what a user must say where a checkpoint's config is silent and the
# class's own default is meant for pixels (clip_sample, skip_prk_steps) or logs at every call (lower_order_final)
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2m_sde_karras": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True},
    ),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "kdpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
SIZE = 64
PROMPTS = ("a red circle", "two blue squares on a green field", "", "x")
STEPS = (12, 9, 15, 7)
GUIDANCE = (7.5, 1.0, 3.0, 12.0)


def request_for(index: int, sampler: str, checkpoint: str, **changes: Any) -> DenoiseRequest:
    """Unlike in everything that lanes may differ in."""
    return DenoiseRequest(
        lane_id=f"{checkpoint}-{sampler}",
        checkpoint=checkpoint,
        seed=1000 + index,
        steps=STEPS[index % len(STEPS)],
        guidance_scale=GUIDANCE[(index // 2) % len(GUIDANCE)],
        width=SIZE,
        height=SIZE,
        sampler=sampler,
        output="latents",
        **changes,
    )


def prompts_for(request: DenoiseRequest) -> tuple[str, str | None]:
    prompt = PROMPTS[request.seed % len(PROMPTS)]
    return prompt, None if request.guidance_scale <= 1 else PROMPTS[(request.seed + 1) % len(PROMPTS)]


def reference(pipeline: Any, request: DenoiseRequest, generator: torch.Generator, **inputs: Any) -> torch.Tensor:
    name, changes = SCHEDULERS[request.sampler]
    original = pipeline.scheduler
    prompt, negative = prompts_for(request)
    try:
        pipeline.scheduler = getattr(diffusers, name).from_config(original.config, **changes)
        latents: torch.Tensor = pipeline(
            prompt,
            # None where ours is "": an SDXL base then takes zeros, and so does Darkroom
            negative_prompt=negative or None,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            generator=generator,
            output_type="latent",
            **inputs,
        ).images
    finally:
        pipeline.scheduler = original
    return latents[0]


def assert_close(results: list[DenoiseResult], expected: dict[str, torch.Tensor]) -> None:
    errors: dict[str, float] = {}
    for result in results:
        want = expected[result.lane_id].numpy()
        assert result.latents is not None
        error = float(np.abs(result.latents - want).max() / np.abs(want).max())
        errors[result.lane_id] = max(error, errors.get(result.lane_id, 0.0))
    far_off = {lane: f"{error:.1e} of the latents' scale" for lane, error in errors.items() if not error < 1e-4}
    assert not far_off, far_off


def alone_and_together(engine: Engine, run_together: RunTogether, work: list[Work]) -> list[DenoiseResult]:
    alone = [run_together(engine, [item])[0] for item in work]
    steps_before = engine.stats()
    together = run_together(engine, work)
    after = engine.stats()
    lanes_per_step = (after.lane_steps_total - steps_before.lane_steps_total) / (
        after.steps_total - steps_before.steps_total
    )
    assert lanes_per_step > 4, "the lanes did not share their steps"
    return alone + together


def picture() -> np.ndarray:
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    return np.stack([x * 3 % 256, y * 3 % 256, (x + y) % 256], axis=-1).astype(np.uint8)


def test_txt2img(
    make_engine: MakeEngine, run_together: RunTogether, sd15_pipeline: StableDiffusionPipeline, encode_sd15: Encode
) -> None:
    requests = [request_for(index, sampler, "sd15") for index, sampler in enumerate(SCHEDULERS)]
    expected = {
        request.lane_id: reference(
            sd15_pipeline, request, torch.Generator().manual_seed(request.seed), height=SIZE, width=SIZE
        )
        for request in requests
    }
    work = [(request, encode_sd15(*prompts_for(request))) for request in requests]
    assert_close(alone_and_together(make_engine(), run_together, work), expected)


@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_img2img(
    make_engine: MakeEngine,
    run_together: RunTogether,
    sd15_pipeline: StableDiffusionPipeline,
    encode_sd15: Encode,
    strength: float,
) -> None:
    pipeline = StableDiffusionImg2ImgPipeline(**sd15_pipeline.components, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    requests = [
        request_for(index, sampler, "sd15", image=picture(), strength=strength)
        for index, sampler in enumerate(SCHEDULERS)
    ]
    expected = {
        request.lane_id: reference(
            pipeline,
            request,
            torch.Generator().manual_seed(request.seed),
            image=Image.fromarray(picture()),
            strength=strength,
        )
        for request in requests
    }
    work = [(request, encode_sd15(*prompts_for(request))) for request in requests]
    assert_close(alone_and_together(make_engine(), run_together, work), expected)


@pytest.mark.parametrize("switch_at", [0.8, 0.5])
def test_base_and_refiner(
    make_engine: MakeEngine,
    run_together: RunTogether,
    sdxl_pipeline: StableDiffusionXLPipeline,
    tiny_sdxl_refiner: Path,
    encode_sdxl: Encode,
    switch_at: float,
) -> None:
    """One generator through both stages, as a diffusers user passes it; one encoding for both, as Darkroom does."""
    refiner = StableDiffusionXLImg2ImgPipeline.from_pretrained(
        tiny_sdxl_refiner, dtype=torch.float32, add_watermarker=False
    )
    refiner.set_progress_bar_config(disable=True)
    of_base: dict[str, torch.Tensor] = {}
    of_refiner: dict[str, torch.Tensor] = {}
    requests = [
        request_for(index, sampler, "sdxl", denoising_end=switch_at) for index, sampler in enumerate(SCHEDULERS)
    ]
    for request in requests:
        generator = torch.Generator().manual_seed(request.seed)
        base_latents = reference(sdxl_pipeline, request, generator, height=SIZE, width=SIZE, denoising_end=switch_at)
        of_base[request.lane_id] = base_latents
        of_refiner[f"refiner-{request.sampler}"] = reference(
            refiner, request, generator, image=base_latents[None], denoising_start=switch_at
        )
    engine = make_engine()
    texts = {request.sampler: encode_sdxl(*prompts_for(request)) for request in requests}
    results = alone_and_together(engine, run_together, [(request, texts[request.sampler]) for request in requests])
    assert_close(results, of_base)
    handed_over = [
        dataclasses.replace(
            request,
            lane_id=f"refiner-{request.sampler}",
            checkpoint="refiner",
            denoising_start=switch_at,
            denoising_end=1.0,
            latents=result.latents,
            generator_state=result.generator_state,
        )
        for request, result in zip(requests, results[len(requests) :], strict=True)
    ]
    refined = alone_and_together(engine, run_together, [(request, texts[request.sampler]) for request in handed_over])
    assert_close(refined, of_refiner)
