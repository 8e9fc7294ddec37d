"""A ControlNet for `demo-sd15`: edges. Shapes stand where the outlines of a picture are, whatever the prompt says.

Trains on the latents that are there, each with the edges of its own drawing, under captions of which many name colours
alone: then the edges decide. Knows nothing of how the service applies it.
"""

from __future__ import annotations

import random
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from demo_models.captions import PLACE_WORDS, caption
from demo_models.drawing import STYLES, Picture
from demo_models.latents import Size, training_drawing, training_scene_of
from demo_models.scenes import Scene

NAME = "demo-edges"
THRESHOLDS = (100, 200)
"""Of Canny's edges, the service's own."""
HINT_WIDTHS = (16, 32, 48, 64)
"""Channels on the edges' way down to the latents' size."""
SHAPELESS = 0.6
"""How many captions name no shape."""


class Controlled(nn.Module):
    """A UNet, frozen, and a ControlNet that trains: a copy of its way down, which changes nothing at first."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet.requires_grad_(False)
        self.controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=HINT_WIDTHS)
        # where it meets the UNet it is zero at first; were it zero here too, edges would be learned late
        self.controlnet.controlnet_cond_embedding.conv_out.reset_parameters()
        self.controlnet.requires_grad_(True)

    def forward(self, noisy: Tensor, t: Tensor, states: Tensor, hint: Tensor, **kwargs: Any) -> tuple[Tensor]:
        """As the UNet's own. hint: (n, 3, height, width) in pixels, 0..1."""
        down, middle = self.controlnet(noisy, t, states, hint, return_dict=False)
        guess: tuple[Tensor] = self.unet(
            noisy,
            t,
            states,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            **kwargs,
        )
        return guess


def edges(picture: Picture) -> Picture:
    """White lines on black, as large as the picture."""
    return np.repeat(cv2.Canny(picture, *THRESHOLDS)[..., None], 3, axis=2)


def training_hints(numbers: list[int], size: Size, rng: random.Random) -> Tensor:
    """What a ControlNet sees of the drawings behind latents: (n, 3, height, width), 0..1."""
    seen = [edges(training_drawing(number, size, STYLES[0])[1]) for number in numbers]
    return torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2).float().div(255)


def controlled_caption(number: int, size: Size, rng: random.Random) -> str:
    """A caption of a latent's scene, often one that leaves its shapes open."""
    scene = training_scene_of(number, size)
    return shapeless(scene, rng) if rng.random() < SHAPELESS else caption(scene, rng)


def shapeless(scene: Scene, rng: random.Random) -> str:
    """The colours of a scene, from left to right or from top to bottom."""
    words = [item.color for item in scene.objects]
    if len(words) > 1 and rng.random() < 0.5:
        words = [f"{item.color} {PLACE_WORDS[item.place][0]}" for item in scene.objects]
    return f"{' and '.join(words)} on a {scene.background} background"
