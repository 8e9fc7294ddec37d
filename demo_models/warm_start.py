"""Starts one UNet from another's weights where their shapes allow, which saves most of its training.

SDXL's base takes over SD 1.5's convolutions and attentions; the refiner takes over the base. What has no
counterpart keeps its own initialisation.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from demo_models.text_encoders import SECOND_WIDTH, WIDTH

Renaming = dict[str, str]
SD15_TO_SDXL: Renaming = {
    "up_blocks.1.": "up_blocks.0.",
    "up_blocks.2.": "up_blocks.1.",
    "up_blocks.3.": "up_blocks.2.",
}
"""SD 1.5's fourth level has no counterpart in SDXL, so its way up starts one block later."""
READS_TEXT = ("attn2.to_k.weight", "attn2.to_v.weight")


def start_sdxl(target: UNet2DConditionModel, sd15: UNet2DConditionModel, states: tuple[Tensor, Tensor]) -> int:
    """Start the base from SD 1.5; returns how many tensors came over.

    `states` are SDXL's and SD 1.5's text states of the same tokens: the base's keys and values read SDXL's
    through the linear map that best turns them into SD 1.5's.
    """
    wide, narrow = (part.flatten(0, 1).double() for part in states)
    # Lightly damped, or near-parallel states would get huge opposite weights.
    damping = 1e-3 * torch.trace(wide.T @ wide) / WIDTH * torch.eye(wide.shape[1], dtype=wide.dtype)
    bridge = torch.linalg.solve(wide.T @ wide + damping, wide.T @ narrow).float()
    found = {}
    for name, value in sd15.state_dict().items():
        if name.startswith("up_blocks.0."):
            continue
        renamed = next((name.replace(a, b, 1) for a, b in SD15_TO_SDXL.items() if name.startswith(a)), name)
        found[renamed] = value @ bridge.T if name.endswith(READS_TEXT) else value
    return _load(target, found)


def start_refiner(target: UNet2DConditionModel, sdxl: UNet2DConditionModel) -> int:
    """Start the refiner from the base: of the text states it keeps the second encoder's columns."""
    found = {
        name: value[:, WIDTH:] if name.endswith(READS_TEXT) else value for name, value in sdxl.state_dict().items()
    }
    # The base's size conditioning ends in a target size, the refiner's in a score: only the rest means the same.
    name = "add_embedding.linear_1.weight"
    own = target.state_dict()[name].clone()
    shared = SECOND_WIDTH + 4 * ((own.shape[1] - SECOND_WIDTH) // 5)
    own[:, :shared] = found[name][:, :shared]
    found[name] = own
    return _load(target, found)


def _load(target: UNet2DConditionModel, found: dict[str, Tensor]) -> int:
    own = target.state_dict()
    # A 1x1 convolution and a linear layer hold the same numbers.
    taken = {
        name: value.reshape(own[name].shape)
        for name, value in found.items()
        if name in own and value.squeeze().shape == own[name].squeeze().shape
    }
    target.load_state_dict(taken, strict=False)
    return len(taken)
