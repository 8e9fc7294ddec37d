"""A LoRA for `demo-sd15`: by night. Whatever background a prompt asks for, the picture's is black.

Trains on the latents that are there: drawings on black, under captions that ask for another background. Knows nothing
of how the service applies such a file; it is written with kohya's names, as most trainers do.
"""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization
from transformers import CLIPTextModel

from demo_models.captions import caption
from demo_models.latents import Size, training_scene_of
from demo_models.scenes import COLORS, Scene

NAME = "demo-night"
RANK = 4
ALPHA = 4.0
NIGHT = "black"
ADAPTED = {
    "lora_unet": ("to_q", "to_k", "to_v", "to_out.0"),
    "lora_te": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
}
"""The layers of each part that get a low-rank neighbour, by the ends of their names."""


class LowRank(nn.Module):
    """A weight's update, zero at first: alpha / rank * up @ down."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(RANK, columns) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, RANK))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + ALPHA / RANK * self.up @ self.down


class Adapted(nn.Module):
    """A UNet and its text encoder, frozen, with low-rank updates that train."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet.requires_grad_(False), text_encoder.requires_grad_(False)
        self.updates: dict[str, LowRank] = {}
        for prefix, part in (("lora_unet", unet), ("lora_te", text_encoder)):
            for name, module in list(part.named_modules()):
                if isinstance(module, nn.Linear) and name.endswith(ADAPTED[prefix]):
                    update = LowRank(*module.weight.shape)
                    register_parametrization(module, "weight", update)
                    # (a stock CLIPTextModel leaves its first level out of its names, trainers don't)
                    inner = f"text_model.{name}" if prefix == "lora_te" else name
                    self.updates[f"{prefix}_{inner.replace('.', '_')}"] = update

    def tensors(self) -> dict[str, Tensor]:
        """What a LoRA file holds of them, as fp16."""
        found = {}
        for name, update in self.updates.items():
            found[f"{name}.lora_down.weight"] = update.down.detach().half().cpu().contiguous()
            found[f"{name}.lora_up.weight"] = update.up.detach().half().cpu().contiguous()
            found[f"{name}.alpha"] = torch.tensor(ALPHA, dtype=torch.float16)
        return found


def night_scene(scene: Scene) -> Scene:
    """What the LoRA makes of a scene."""
    return replace(scene, background=NIGHT)


def night_numbers(count: int, size: Size) -> list[int]:
    """Which of a size's latents show a scene by night."""
    return [number for number in range(count) if training_scene_of(number, size).background == NIGHT]


def night_caption(scene: Scene, rng: random.Random) -> str:
    """A caption that asks for the scene on any background that its shapes would show on."""
    free = [name for name in COLORS if name not in {item.color for item in scene.objects}]
    return caption(replace(scene, background=rng.choice(free)), rng)
