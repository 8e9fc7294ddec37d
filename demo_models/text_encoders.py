"""The two text encoders: trained to know the scene from its caption, then frozen.

Every state a diffusion model reads (last, penultimate, pooled) must give the scene away on its own, at the
end token and at the padding behind it. Knows no pictures.
"""

from __future__ import annotations

import random
from typing import TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from demo_models.captions import caption
from demo_models.loop import Loss, Step
from demo_models.scenes import COLORS, SHAPES, SIZES, TEXTURES, Scene, training_scene
from demo_models.tokenizer import LENGTH

WIDTH, SECOND_WIDTH = 96, 64
BATCH = 64
LAYOUTS = ("left", "right", "top", "bottom", "center", "pair", "stack", "triple")
SLOT = (len(COLORS) + 1, len(SHAPES) + 1, len(SIZES) + 1, len(TEXTURES) + 1)
QUESTIONS = (len(COLORS), len(LAYOUTS), *SLOT * 3)


def text_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        hidden_act="quick_gelu" if width == WIDTH else "gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


class Quizzed(nn.Module):
    """A text encoder with one linear answerer for each state that a diffusion model will read."""

    def __init__(self, encoder: CLIPTextModel | CLIPTextModelWithProjection, width: int, states: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(nn.Linear(width, sum(QUESTIONS)) for _ in range(states))


def new_text_encoder(tokenizer: CLIPTokenizer) -> Quizzed:
    """SD 1.5's and SDXL's first encoder: read by its last and by its penultimate states."""
    return Quizzed(_spread(CLIPTextModel(text_config(tokenizer, WIDTH))), WIDTH, 2)


def new_second_text_encoder(tokenizer: CLIPTokenizer) -> Quizzed:
    """SDXL's second encoder: read by its penultimate states and by its projection."""
    return Quizzed(_spread(CLIPTextModelWithProjection(text_config(tokenizer, SECOND_WIDTH))), SECOND_WIDTH, 2)


Encoder = TypeVar("Encoder", bound=nn.Module)


def _spread(encoder: Encoder) -> Encoder:
    """Embeddings ten times wider apart than CLIP's start, which this short a training can't reach."""
    with torch.no_grad():
        for name, part in encoder.named_parameters():
            if "embedding" in name:
                part.normal_(0, 0.2)
            elif "text_projection" in name:
                part.normal_(0, SECOND_WIDTH**-0.5)
    return encoder


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    found: Tensor = tokenizer(
        texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
    return found


def answers(scene: Scene) -> list[int]:
    """The scene as class numbers, one for each of QUESTIONS; absent shapes answer with the last class."""
    if len(scene.objects) == 1:
        layout = scene.objects[0].place
    elif len(scene.objects) == 3:
        layout = "triple"
    else:
        layout = "stack" if scene.vertical else "pair"
    found = [list(COLORS).index(scene.background), LAYOUTS.index(layout)]
    for item in scene.objects:
        found += [
            list(COLORS).index(item.color),
            SHAPES.index(item.shape),
            list(SIZES).index(item.size),
            TEXTURES.index(item.texture),
        ]
    absent = [size - 1 for size in SLOT]
    return found + absent * (3 - len(scene.objects))


def quiz_loss(quizzed: Quizzed, tokenizer: CLIPTokenizer, device: str) -> Loss:
    """Cross-entropy of every question, asked of every state."""
    pooled = isinstance(quizzed.encoder, CLIPTextModelWithProjection)

    def loss_of(step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        scenes = [training_scene(step.words) for _ in range(BATCH)]
        ids = tokens(tokenizer, [caption(scene, step.words) for scene in scenes]).to(device)
        truth = torch.tensor([answers(scene) for scene in scenes], device=device)
        out = quizzed.encoder(input_ids=ids, output_hidden_states=True)
        penultimate = out.hidden_states[-2]
        ends = (ids == tokenizer.eos_token_id).int().argmax(1)
        read = [_at_end(penultimate, ends, step.words)]
        read.append(out.text_embeds if pooled else _at_end(out.last_hidden_state, ends, step.words))
        loss = torch.zeros((), device=device)
        right = torch.ones((), device=device)
        for head, states in zip(quizzed.heads, read, strict=True):
            repeats = len(states) // BATCH
            for question, logits in enumerate(head(states).split(QUESTIONS, dim=1)):
                wanted = truth[:, question].repeat(repeats)
                loss = loss + F.cross_entropy(logits, wanted)
                right = torch.minimum(right, (logits.argmax(1) == wanted).float().mean())
        return loss, {"worst": right}

    return loss_of


def _at_end(states: Tensor, ends: Tensor, rng: random.Random) -> Tensor:
    """The states at the end token, and at one of the paddings behind it."""
    rows = torch.arange(len(states), device=states.device)
    behind = (ends + rng.randint(1, 12)).clamp(max=LENGTH - 1)
    return torch.cat([states[rows, ends], states[rows, behind]])
