"""A fixed tiny generation, whose outcome tells one checkpoint's weights from any others.

After a swap it shows that the weights in use are the ones that were loaded first. It is compared by how far it is off
and not by a hash: another kernel's rounding, which a GPU's libraries may choose when memory is short, is no other
checkpoint. Knows loaded weights; nothing of files or of who loads.
"""

from typing import Any

import torch

from deployments.engine.denoiser_weights import DenoiserWeights
from deployments.engine.latents import decode_latents

_CELLS = 8  # a side of the latents
_TOKENS = 77
_TIMESTEP = 500.0
# of the spread of what is compared: rounding stays far below, a checkpoint's own variants differ by more
_TOLERANCES = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 5e-2}


def canary_of(weights: DenoiserWeights) -> tuple[torch.Tensor, ...]:
    """Float32, on the CPU: the UNet's output (channels, 8, 8) of fixed inputs, and what the VAE makes of it, if it can.

    One forward of each, alone in its batch. Runs in the thread that owns the device.
    """
    unet, vae = weights.unet, weights.vae
    config: Any = unet.config
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(unet.device, unet.dtype)

    added = None
    if config.addition_embed_type == "text_time":
        ids = 5 if weights.requires_aesthetics_score else 6
        pooled = config.projection_class_embeddings_input_dim - ids * config.addition_time_embed_dim
        added = {"text_embeds": random(1, pooled), "time_ids": random(1, ids)}
    sample = random(1, config.in_channels, _CELLS, _CELLS)
    with torch.inference_mode():
        noise = unet(
            sample,
            torch.tensor([_TIMESTEP], device=unet.device),
            random(1, _TOKENS, config.cross_attention_dim),
            added_cond_kwargs=added,
            return_dict=False,
        )[0].float()
        (picture,) = decode_latents(vae, sample[:, : noise.shape[1]].float() - noise)
    found = (noise[0].cpu(),)
    return found if isinstance(picture, Exception) else (*found, torch.from_numpy(picture).float())


def is_alike(first: tuple[torch.Tensor, ...], again: tuple[torch.Tensor, ...], dtype: torch.dtype) -> bool:
    """Whether two canaries are of the same weights. dtype: that they were computed in."""
    if len(first) != len(again):
        return False
    # a picture's numbers are whole: one step of them is nothing
    return all(
        bool((a - b).abs().max() <= max(_TOLERANCES[dtype] * float(a.std()), rounding))
        for a, b, rounding in zip(first, again, (0.0, 1.0), strict=False)
    )
