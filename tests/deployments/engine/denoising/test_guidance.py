"""Guidance of one batch's lanes: each by itself."""

import torch
from diffusers.pipelines.latent_consistency_models.pipeline_latent_consistency_text2img import (
    LatentConsistencyModelPipeline,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from deployments.engine.denoising.guidance import guidance_embedding, rescaled


def test_lanes_are_rescaled_as_diffusers_does_it_each_alone() -> None:
    draws = torch.Generator().manual_seed(1)
    negative, positive = (torch.randn(3, 4, 8, 8, generator=draws, dtype=torch.float32) for _ in range(2))
    negative[2] = positive[2]  # no guidance
    scales = torch.tensor([3.0, 7.5, 9.0], dtype=torch.float32).view(-1, 1, 1, 1)
    plain = negative + scales * (positive - negative)
    outputs = rescaled(plain.clone(), positive, {1: 0.7})
    assert torch.equal(outputs[2], positive[2])
    assert torch.equal(outputs[0], plain[0])
    expected = rescale_noise_cfg(plain[1:2], positive[1:2], guidance_rescale=0.7)
    assert torch.allclose(outputs[1:2], expected, atol=1e-6)


def test_scales_are_embedded_as_latent_consistency_models_have_them() -> None:
    scales = [1.0, 1.5, 8.5]
    weights = torch.tensor(scales, dtype=torch.float32) - 1
    for channels in (16, 17):
        embedding = guidance_embedding(scales, channels)
        expected = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, weights, channels)
        assert torch.allclose(embedding, expected, atol=1e-6)
