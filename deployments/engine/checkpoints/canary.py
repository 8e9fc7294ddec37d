"""A fixed tiny generation, whose hash tells one checkpoint's weights from any others.

Computed again after a swap it shows that the weights in use are those that were loaded first: the same weights on the
same device and shapes give the same bits, on which the promise of reproducible images rests too. Knows loaded weights;
nothing of files or of who loads.
"""

import hashlib
from typing import Any

import torch

from deployments.engine.checkpoints.denoiser_weights import DenoiserWeights
from deployments.engine.errors import NumericalFailure
from deployments.engine.vae.autoencoder import Vae

_CELLS = 8  # a side of the latents
_TOKENS = 77
_TIMESTEP = 500.0


def canary_of(weights: DenoiserWeights) -> str:
    """sha256 (hex) of what the UNet makes of fixed inputs, and the VAE of that: a forward of each, alone in its batch.

    Runs in the thread that owns the device. Raises NumericalFailure if the UNet's outputs aren't numbers. (A VAE may
    overflow on latents that no prompt has.)
    """
    sample, noise = fixed_forward(weights)
    if not bool(torch.isfinite(noise).all()):
        raise NumericalFailure("what the UNet makes of numbers aren't numbers")
    (picture,) = Vae.of(weights).decode(sample[:, : noise.shape[1]] - noise)
    digest = hashlib.sha256(noise.cpu().numpy().tobytes())
    if not isinstance(picture, NumericalFailure):
        digest.update(picture.tobytes())
    return digest.hexdigest()


def fixed_forward(weights: DenoiserWeights) -> tuple[torch.Tensor, torch.Tensor]:
    """A sample that is always the same (1, channels, 8, 8), and what the UNet makes of it; both float32."""
    unet, device = weights.unet, weights.placement.device
    config: Any = unet.config
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, unet.dtype)

    added = None
    if weights.pooled_channels is not None:
        added = {"text_embeds": random(1, weights.pooled_channels), "time_ids": random(1, weights.time_ids)}
    sample = random(1, config.in_channels, _CELLS, _CELLS)
    with torch.no_grad():
        weights.placement.bring_unet()
        noise = unet(
            sample,
            torch.tensor([_TIMESTEP], device=device),
            random(1, _TOKENS, config.cross_attention_dim),
            added_cond_kwargs=added,
            return_dict=False,
        )[0].float()
    return sample.float(), noise
