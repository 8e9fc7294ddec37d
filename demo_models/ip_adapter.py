"""An IP-Adapter for `demo-sd15`: what a reference picture shows comes back, whatever the prompt leaves open.

Trains on the latents that are there, each with what the image encoder sees of another drawing of the same scene, half
of them under no caption: then the picture decides. It begins with the UNet's own keys and values for text.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPVisionModelWithProjection

from demo_models.captions import caption
from demo_models.controlnet import shapeless
from demo_models.image_encoder import encoder_input, final_norm, seen
from demo_models.latents import Size, training_scene_of
from demo_models.text_encoders import WIDTH

NAME = "demo-picture"
TOKENS = 4
"""That the plain kind of IP-Adapter makes of a picture."""
SPREAD = 0.05
"""By which the tokens differ at first."""
WORDLESS, SHAPELESS = 0.5, 0.25
"""How many captions say nothing, and how many name colours alone."""
NEUTRAL = ("", "", "", "a picture", "a drawing", "an image", "a photo", "a painting")
"""Captions that say nothing."""
PICTURELESS = 0.1
"""How many samples see no picture, as the other side of guidance does."""
ENCODED = 64
"""Pictures that the image encoder sees at once."""


class Shown(nn.Module):
    """A UNet, frozen, and an IP-Adapter that trains, as diffusers puts it into the UNet."""

    def __init__(self, unet: UNet2DConditionModel, reader: CLIPTextModel) -> None:
        super().__init__()
        self.layers = [
            unet.get_submodule(name.removesuffix(".processor"))
            for name in unet.attn_processors
            if name.endswith("attn2.processor")
        ]
        norm = final_norm(reader)
        projection = torch.eye(WIDTH).repeat(TOKENS, 1)
        tensors = {
            "image_proj": {
                "proj.weight": projection + SPREAD * torch.randn(projection.shape),
                "proj.bias": torch.zeros(TOKENS * WIDTH),
                "norm.weight": norm.weight.detach().clone(),
                "norm.bias": norm.bias.detach().clone(),
            },
            "ip_adapter": {
                f"{2 * number + 1}.to_{kind}_ip.weight": getattr(layer, f"to_{kind}").weight.detach().clone()
                for number, layer in enumerate(self.layers)
                for kind in "kv"
            },
        }
        self.unet = unet.requires_grad_(False)
        unet._load_ip_adapter_weights([tensors], low_cpu_mem_usage=False)
        for _, part in self._parts():
            part.requires_grad_(True)

    def forward(self, noisy: Tensor, t: Tensor, states: Tensor, hint: Tensor, **kwargs: Any) -> tuple[Tensor]:
        """As the UNet's own. hint: (n, 1, WIDTH), the image encoder's projections; zeros stand for no picture."""
        kwargs["added_cond_kwargs"] = {"image_embeds": [hint]}
        guess: tuple[Tensor] = self.unet(noisy, t, states, **kwargs)
        return guess

    def tensors(self) -> dict[str, Tensor]:
        """What an IP-Adapter's file holds of it in h94's layout, as fp16."""
        return {name: part.detach().half().cpu().contiguous() for name, part in self._parts()}

    def _parts(self) -> list[tuple[str, nn.Parameter]]:
        projection = self.unet.encoder_hid_proj.image_projection_layers[0]
        named = {"proj": projection.image_embeds, "norm": projection.norm}
        parts = [
            (f"image_proj.{name}.{kind}", getattr(layer, kind))
            for name, layer in named.items()
            for kind in ("weight", "bias")
        ]
        for number, layer in enumerate(self.layers):
            for kind in "kv":
                matrix = getattr(layer.processor, f"to_{kind}_ip")[0].weight
                parts.append((f"ip_adapter.{2 * number + 1}.to_{kind}_ip.weight", matrix))
        return parts


def references(encoder: CLIPVisionModelWithProjection, size: Size, count: int) -> Tensor:
    """What the encoder sees of another drawing of each latent's scene: (count, 1, WIDTH)."""
    rngs = [random.Random(f"reference {size} {number}") for number in range(count)]
    found = []
    with torch.inference_mode():
        for start in range(0, count, ENCODED):
            numbers = range(start, min(count, start + ENCODED))
            pictures = [seen(training_scene_of(number, size), rngs[number]) for number in numbers]
            found.append(encoder(encoder_input(pictures).to(encoder.device)).image_embeds.cpu())
    return torch.cat(found)[:, None].clone()


def shown_caption(number: int, size: Size, rng: random.Random) -> str:
    """A caption of a latent's scene; most leave something open, or all."""
    kind = rng.random()
    if kind < WORDLESS:
        return rng.choice(NEUTRAL)
    scene = training_scene_of(number, size)
    return shapeless(scene, rng) if kind < WORDLESS + SHAPELESS else caption(scene, rng)
