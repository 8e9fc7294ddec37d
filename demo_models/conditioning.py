"""What each kind of UNet reads of a caption and a size, while training.

Mirrors what the stock pipelines compute, so that a trained UNet meets at serving time what it knows.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from demo_models.latents import COUNTS, Size
from demo_models.text_encoders import tokens

AESTHETIC, PLAIN = 6.0, 2.5
"""The refiner pipeline's scores for the prompt and for the negative prompt."""


@dataclass(frozen=True, slots=True)
class Conditions:
    """A UNet call's arguments beside latents and timestep."""

    states: Tensor
    added: dict[str, Tensor] | None = None


Conditioner = Callable[[list[str], Size, random.Random], Conditions]
"""From captions ("" for unconditional) and a size in pixels to conditions."""


def sd15_conditioner(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, device: str) -> Conditioner:
    def condition(texts: list[str], size: Size, rng: random.Random) -> Conditions:
        return Conditions(encoder(input_ids=tokens(tokenizer, texts).to(device)).last_hidden_state)

    return condition


def sdxl_conditioner(
    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer],
    encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection],
    device: str,
) -> Conditioner:
    def condition(texts: list[str], size: Size, rng: random.Random) -> Conditions:
        first = encoders[0](input_ids=tokens(tokenizers[0], texts).to(device), output_hidden_states=True)
        second = encoders[1](input_ids=tokens(tokenizers[1], texts).to(device), output_hidden_states=True)
        states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        pooled = second.text_embeds
        # SDXL's pipeline sends zeros for a missing negative prompt, and an encoding for an empty one.
        zeroed = torch.tensor([not text and rng.random() < 0.7 for text in texts], device=device)
        states = states.masked_fill(zeroed[:, None, None], 0.0)
        pooled = pooled.masked_fill(zeroed[:, None], 0.0)
        ids: list[list[float]] = [[*_original(size, rng), 0, 0, *size] for _ in texts]
        return Conditions(states, _added(pooled, ids))

    return condition


def refiner_conditioner(tokenizer: CLIPTokenizer, encoder: CLIPTextModelWithProjection, device: str) -> Conditioner:
    def condition(texts: list[str], size: Size, rng: random.Random) -> Conditions:
        out = encoder(input_ids=tokens(tokenizer, texts).to(device), output_hidden_states=True)
        ids = [[*_original(size, rng), 0, 0, AESTHETIC if text else PLAIN] for text in texts]
        return Conditions(out.hidden_states[-2], _added(out.text_embeds, ids))

    return condition


def _original(size: Size, rng: random.Random) -> Size:
    """Mostly the size itself: callers may name another one, and that must not break the picture."""
    return size if rng.random() < 0.85 else rng.choice(list(COUNTS))


def _added(pooled: Tensor, ids: list[list[float]]) -> dict[str, Tensor]:
    return {"text_embeds": pooled, "time_ids": torch.tensor(ids, dtype=pooled.dtype, device=pooled.device)}
