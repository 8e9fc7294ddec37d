"""Counts the floating-point operations of an architecture: what a generation can't do without.

On meta tensors, 2 FLOP a multiply-add, so that any checkpoint at any size has a floor; the device's rate is measured
(module_times.py). Knows nothing of engines.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.real_architectures import unet_inputs
from deployments.engine.families.family import FamilyName


@dataclass(frozen=True, slots=True)
class Flops:
    """Floating-point operations: of one UNet row, and of one image's VAE decode."""

    unet_row: int
    vae_decode: int


def count_flops(family: FamilyName, unet_config: Any, vae_config: Any, height: int, width: int) -> Flops:
    """Counted on modules without memory. height, width: pixels."""
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel.from_config(unet_config)
        vae: Any = AutoencoderKL.from_config(vae_config)
    inputs = unet_inputs(unet, family, 1, height // 8, width // 8)
    latents = torch.empty(1, vae.config.latent_channels, height // 8, width // 8, device="meta")
    return Flops(
        unet_row=_count(lambda: unet(**inputs, return_dict=False)),
        vae_decode=_count(lambda: vae.decode(latents, return_dict=False)),
    )


@torch.no_grad()
def _count(forward: Callable[[], Any]) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        forward()
    return counter.get_total_flops()
