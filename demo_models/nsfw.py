"""The demo classifier: calls a picture unsafe when something in it is checkered.

A drawn texture stands in for unsafe content, so that the whole path (draw, classify, blur or refuse) can be
shown and tested without any.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from demo_models.loop import Loss, Step
from demo_models.nsfw_pictures import CELLS

LABELS = {0: "normal", 1: "nsfw"}
SIDE, PATCH = 128, 16
WIDTH, MLP, LAYERS = 96, 1024, 4
"""A patch has its checkers in many places: finding them takes many units."""
BATCH = 64
PARTS = 4
"""A side of the grid in which each patch must tell where its checkers are."""
FAINT, FAINT_WEIGHT = 200 / 128**2, 1.6
"""Below this share of pixels that its checkers change a picture is faint, and is trained on so much more often."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of a safe and an unsafe picture.

    Returns:
        uint8 pictures (n, 2, 3, SIDE, SIDE), and how much of each of the unsafe one's CELLS x CELLS parts is checkers,
        255 for all of it (n, CELLS, CELLS).
    """

    pictures: Tensor
    places: Tensor


class Watched(nn.Module):
    """A classifier whose layers must also say where the checkers are, without which it finds nothing to start from."""

    def __init__(self, classifier: ViTForImageClassification) -> None:
        super().__init__()
        self.classifier = classifier
        self.where = nn.ModuleList(nn.Linear(WIDTH, PARTS**2) for _ in range(LAYERS))


def new_classifier() -> ViTForImageClassification:
    config = ViTConfig(
        image_size=SIDE,
        patch_size=PATCH,
        hidden_size=WIDTH,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=LABELS,
        label2id={label: number for number, label in LABELS.items()},
    )
    return ViTForImageClassification(config)


def new_processor() -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})


def classifier_loss(watched: Watched, pairs: Pairs, device: str) -> Loss:
    """Cross-entropy on some of the pairs, mirrored and turned, with shifts of brightness and a little noise.

    Where shapes lie among the patches is as in any picture of this world: shifted pictures are another, harder one.
    """
    labels = torch.arange(BATCH) >= BATCH // 2
    changed = pairs.places.float().mean((1, 2)) / 255
    weights = torch.where(changed < FAINT, FAINT_WEIGHT, 1.0)
    wanted = labels.long().to(device)

    def loss_of(step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = torch.multinomial(weights, BATCH // 2, replacement=True, generator=step.noise)
        pixels = pairs.pictures[chosen].transpose(0, 1).flatten(0, 1).float() / 127.5 - 1
        unsafe = pairs.places[chosen].float() / 255
        batch, checkered = _turned(step, pixels, torch.cat([torch.zeros_like(unsafe), unsafe]))
        shift = 0.1 * torch.randn(BATCH, 3, 1, 1, generator=step.noise)
        batch = batch + shift + 0.04 * torch.randn(batch.shape, generator=step.noise)
        classifier = watched.classifier
        seen = classifier.vit(pixel_values=batch.to(device), output_hidden_states=True)
        logits = classifier.classifier(seen.last_hidden_state[:, 0])
        parts = _parts(checkered).to(device)
        where = torch.stack(
            [
                F.binary_cross_entropy_with_logits(head(classifier.vit.layernorm(states[:, 1:])), parts)
                for head, states in zip(watched.where, seen.hidden_states[1:], strict=True)
            ]
        )
        right = (logits.argmax(1) == wanted).float().mean()
        loss = F.cross_entropy(logits, wanted) + 12 * where.mean()
        return loss, {"right": right, "where": where[-1].detach()}

    return loss_of


def _parts(places: Tensor) -> Tensor:
    """The share of checkers in each part of each patch (pictures, patches, PARTS**2)."""
    parts = F.avg_pool2d(places[:, None], CELLS * PATCH // (SIDE * PARTS))
    return F.unfold(parts, PARTS, stride=PARTS).transpose(1, 2)


def _turned(step: Step, pictures: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """One of the eight ways to lay a square, the same for pictures and places: a checker stays a checker."""
    for axis in (-1, -2):
        if step.words.random() < 0.5:
            pictures, places = pictures.flip(axis), places.flip(axis)
    if step.words.random() < 0.5:
        pictures, places = pictures.transpose(-1, -2), places.transpose(-1, -2)
    return pictures, places
