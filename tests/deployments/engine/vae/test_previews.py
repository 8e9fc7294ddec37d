"""Previews: a look at where a lane is going, without a decoder."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from deployments.engine.config import EngineSettings
from deployments.engine.denoising.denoiser import Denoiser
from deployments.engine.row_threads import RowThreads
from deployments.engine.vae.autoencoder import Vae
from deployments.engine.vae.previews import fit_preview_map
from tests.deployments.engine.checkpoints.checkpoint_loading import load

DEMO_MODEL = Path(__file__).parents[4] / "demo_models" / "demo-sd15"


def test_the_map_shows_the_colours_of_an_image() -> None:
    """Fitted on other tiles than these, by a trained VAE."""
    vae = load("sd15", DEMO_MODEL).vae
    colours = np.random.default_rng(1).integers(0, 256, (4, 4, 3), np.uint8)
    image = colours.repeat(32, 0).repeat(32, 1)
    shown = fit_preview_map(Vae(vae)).render(Vae(vae).encode(image, torch.Generator().manual_seed(0)))
    assert shown.shape == (16, 16, 3)
    tiles = shown.reshape(4, 4, 4, 4, 3).astype(float).mean((1, 3))
    assert np.corrcoef(tiles.ravel(), colours.ravel())[0, 1] > 0.8


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_clean_latents_follow_from_what_the_model_says(tiny_sd15: Path, prediction_type: str) -> None:
    """From noisy latents and a perfect model's output, whichever it predicts, the preview is that of the clean ones."""
    weights = load("sd15", tiny_sd15)
    weights = dataclasses.replace(
        weights, scheduler_config=weights.scheduler_config | {"prediction_type": prediction_type}
    )
    denoiser = Denoiser(weights, fit_preview_map(Vae.of(weights)), EngineSettings(device="cpu"), RowThreads(1))
    clean, noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha = torch.cumprod(1 - betas, 0)[300]
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    says = {"epsilon": noise, "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * clean, "sample": clean}
    shown = denoiser.preview(300.0, noisy, says[prediction_type])
    expected = fit_preview_map(Vae.of(weights)).render(clean)
    assert np.abs(shown.astype(int) - expected.astype(int)).max() <= 1
    assert expected.std() > 0
