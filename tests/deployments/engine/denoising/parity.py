"""What a diffusers user would write, and how near to it Darkroom has to come."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import diffusers
import numpy as np
import torch

from deployments.engine.samplers.registry import split
from deployments.engine.types import Conditioning, DenoiseRequest, DenoiseResult, PromptEmbedding
from tests.deployments.engine.samplers.diffusers_schedulers import FOR_LATENTS, SCHEDULED, SCHEDULERS

TOLERANCE = 1e-4  # of the latents' scale
PROMPTS = (
    "a large red circle on a blue background",
    "a small yellow star and a large green ring on a white background",
    "",
    "a purple heart",
)


def seeded(request: DenoiseRequest) -> torch.Generator:
    return torch.Generator().manual_seed(request.seed)


def prompts_for(request: DenoiseRequest) -> tuple[str, str | None]:
    prompt = PROMPTS[request.seed % len(PROMPTS)]
    return prompt, None if request.guidance_scale <= 1 else PROMPTS[(request.seed + 1) % len(PROMPTS)]


def encode(pipe: Any, request: DenoiseRequest) -> Conditioning:
    """The texts by diffusers' own encoders, so that nothing but the denoising is compared."""

    def encode_one(text: str) -> PromptEmbedding:
        encoded = pipe.encode_prompt(text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
        hidden, pooled = encoded[0], encoded[2] if len(encoded) == 4 else None
        return PromptEmbedding(
            hidden[0].detach().numpy(), None if pooled is None else pooled[0].detach().numpy(), empty=text == ""
        )

    prompt, negative = prompts_for(request)
    return Conditioning(encode_one(prompt), None if negative is None else encode_one(negative))


def reference(
    pipe: Any,
    request: DenoiseRequest,
    generator: torch.Generator,
    config: Mapping[str, Any] = MappingProxyType({}),
    **inputs: Any,
) -> torch.Tensor:
    """config: what the user changes of the checkpoint's scheduler configuration, beside its class."""
    name, changes = (SCHEDULERS | SCHEDULED)[request.sampler]
    original = pipe.scheduler
    prompt, negative = prompts_for(request)
    try:
        pipe.scheduler = getattr(diffusers, name).from_config(
            original.config, **changes | FOR_LATENTS.get(split(request.sampler)[0], {}) | dict(config)
        )
        latents: torch.Tensor = pipe(
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
        pipe.scheduler = original
    return latents[0]


def assert_close(results: list[DenoiseResult], expected: dict[str, torch.Tensor]) -> None:
    far_off = []
    for result in results:
        want = expected[result.lane_id].numpy()
        assert result.latents is not None
        error = float(np.abs(result.latents - want).max() / np.abs(want).max())
        if not error < TOLERANCE:
            far_off.append(f"{result.lane_id}: {error:.1e} of the latents' scale")
    assert not far_off, far_off
