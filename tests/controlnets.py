"""Writes ControlNets as their trainers do, random ones that make a difference."""

from pathlib import Path

import torch
from diffusers import ControlNetModel, UNet2DConditionModel


@torch.no_grad()
def random_controlnet(
    unet: UNet2DConditionModel, seed: int, size: float = 0.05, seen: tuple[int, ...] = (8, 8, 12, 16)
) -> ControlNetModel:
    """A copy of the UNet's way down whose zero convolutions aren't zero; what it sees depends on the picture.

    `seen`: channels of the picture's embedding, level by level.
    """
    generator = torch.Generator().manual_seed(seed)
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=seen).eval()
    first_out = controlnet.controlnet_cond_embedding.conv_out
    for layer in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block, first_out):
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * size)
        layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator) * size)
    first_out.weight.mul_(20)
    return controlnet


def write_controlnet(folder: Path, controlnet: ControlNetModel, variant: str | None = None) -> Path:
    """A diffusers folder."""
    controlnet.save_pretrained(folder, variant=variant)
    return folder
