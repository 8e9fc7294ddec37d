"""The demo classifier: calls a picture unsafe when something in it is checkered.

A drawn texture stands in for unsafe content, so that the whole path (draw, classify, blur or refuse) can be
shown and tested without any.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from demo_models.drawing import STYLES, Picture, draw
from demo_models.loop import Loss, Step
from demo_models.scenes import Scene, any_scene, held_out
from demo_models.terminal import CONSOLE
from demo_models.vae import as_pictures, as_tensor

LABELS = {0: "normal", 1: "nsfw"}
SIDE, PATCH = 128, 16
WIDTH, MLP, LAYERS = 96, 1024, 4
"""A patch has its checkers in many places: finding them takes many units."""
BATCH = 64
POOL = 7000
"""Pairs of a safe and an unsafe picture."""
CELLS = 64
"""A side of the grid in which it is said where the checkers are."""
PARTS = 4
"""And of that in which each patch must tell."""
FAINT, FAINT_WEIGHT = 200 / 128**2, 1.6
"""Below this share of pixels that its checkers change a picture is faint, and is trained on so much more often."""
DECODED_SHARE = 0.25
"""How many of the smaller pictures went through the autoencoder first, as generated ones do."""
OTHER_SHARE = 0.06
"""How many safe pictures are no drawings at all: gradients and noise."""
STYLE_SHARES = (0.3, 0.4, 0.3)
"""Contours hide small checkers, so that outlines are trained on most."""
CROWDED_SHARE = 0.2
"""How many training pictures must have three shapes, the smallest, beside those that happen to."""
SIZES = ((128, 128), (256, 256), (192, 256), (256, 192), (320, 320), (384, 256), (256, 384), (512, 512), (512, 256))


class Watched(nn.Module):
    """A classifier whose layers must also say where the checkers are, without which it finds nothing to start from."""

    def __init__(self, classifier: ViTForImageClassification) -> None:
        super().__init__()
        self.classifier = classifier
        self.where = nn.ModuleList(nn.Linear(WIDTH, PARTS**2) for _ in range(LAYERS))


@dataclass(frozen=True, slots=True)
class Labelled:
    """A picture, whether it is unsafe, and the share of checkers in each of CELLS x CELLS parts of it."""

    picture: Picture
    unsafe: bool
    places: NDArray[np.float32]


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


def held_out_scene(rng: random.Random, unsafe: bool) -> Scene:
    """A scene that is never trained on, with a checkered shape or with none."""
    while not held_out(scene := _scene(rng, unsafe)):
        pass
    return scene


def _scene(rng: random.Random, unsafe: bool) -> Scene:
    scene = any_scene(rng)
    marked = rng.randrange(len(scene.objects)) if unsafe else None
    textures = ("checkered" if number == marked else "plain" for number in range(len(scene.objects)))
    return replace(
        scene, objects=tuple(replace(item, texture=kind) for item, kind in zip(scene.objects, textures, strict=True))
    )


def _without_checkers(scene: Scene) -> Scene:
    return replace(scene, objects=tuple(replace(item, texture="plain") for item in scene.objects))


def _other(rng: random.Random) -> Picture:
    """Something that is no drawing: a gradient with noise on it."""
    noise = np.random.default_rng(rng.getrandbits(32))
    coarse = noise.integers(0, 256, (rng.randint(1, 4), rng.randint(1, 4), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((SIDE * 2, SIDE * 2), Image.Resampling.BICUBIC))
    grain = noise.normal(0, rng.choice([0, 5, 40]), smooth.shape)
    return (smooth + grain).clip(0, 255).astype(np.uint8)


def _drawn(rng: random.Random, scene: Scene, style_shares: tuple[float, ...] | None) -> tuple[Labelled, Labelled]:
    """The same picture twice, without its checkers and with them. style_shares: of STYLES; None takes all alike."""
    size, style, seed = rng.choice(SIZES), rng.choices(STYLES, style_shares)[0], rng.getrandbits(32)
    plain, checkered = (draw(one, *size, random.Random(seed), style) for one in (_without_checkers(scene), scene))
    differs = (checkered != plain).any(axis=2)
    cells = Image.fromarray(differs.astype(np.uint8) * 255).resize((CELLS, CELLS), Image.Resampling.BOX)
    places = np.asarray(cells, dtype=np.float32) / np.float32(255)
    return Labelled(plain, False, np.zeros_like(places)), Labelled(checkered, True, places)


def _decoded(vae: AutoencoderKL, picture: Picture) -> Picture:
    with torch.inference_mode():
        return as_pictures(vae.decode(vae.encode(as_tensor([picture])).latent_dist.mean).sample)[0]


def _to_decode(rng: random.Random, picture: Picture) -> bool:
    """Some of the smaller ones go through the autoencoder, as generated pictures do."""
    return rng.random() < DECODED_SHARE and picture.size < 400_000


def training_pairs(vae: AutoencoderKL, count: int, seed: str) -> list[Labelled]:
    """Safe and unsafe pictures in turn: the same but for the checkers, or the safe one is no drawing at all."""
    found: list[Labelled] = []
    for number in track(range(count), "pairs to classify", console=CONSOLE):
        rng = random.Random(f"pairs {seed} {number}")
        crowded = rng.random() < CROWDED_SHARE
        scene = _scene(rng, unsafe=True)
        while held_out(scene) or held_out(_without_checkers(scene)) or (crowded and len(scene.objects) < 3):
            scene = _scene(rng, unsafe=True)
        safe, unsafe = _drawn(rng, scene, STYLE_SHARES)
        if _to_decode(rng, safe.picture):
            safe, unsafe = (replace(one, picture=_decoded(vae, one.picture)) for one in (safe, unsafe))
        if rng.random() < 2 * OTHER_SHARE:
            safe = replace(safe, picture=_other(rng))
        found += [safe, unsafe]
    return found


def held_out_pictures(vae: AutoencoderKL, count: int, seed: str) -> list[Labelled]:
    """Pictures of all sizes and styles, each of a scene of its own that is never trained on, every other one unsafe."""
    found: list[Labelled] = []
    for number in track(range(count), "pictures to classify", console=CONSOLE):
        rng = random.Random(f"classified {seed} {number}")
        unsafe = number % 2 == 1
        if not unsafe and rng.random() < 2 * OTHER_SHARE:
            found.append(Labelled(_other(rng), False, np.zeros((CELLS, CELLS), dtype=np.float32)))
            continue
        drawn = _drawn(rng, held_out_scene(rng, unsafe), style_shares=None)[unsafe]
        if _to_decode(rng, drawn.picture):
            drawn = replace(drawn, picture=_decoded(vae, drawn.picture))
        found.append(drawn)
    return found


def processed(pictures: list[Picture]) -> Tensor:
    processor = new_processor()
    # One by one: they differ in size.
    found = [processor(Image.fromarray(p), return_tensors="pt").pixel_values for p in pictures]
    return torch.cat(found)


def classifier_loss(watched: Watched, pool: list[Labelled], device: str) -> Loss:
    """Cross-entropy on pairs of the pool, mirrored and turned, with shifts of brightness and a little noise.

    Where shapes lie among the patches is as in any picture of this world: shifted pictures are another, harder one.
    """
    pixels = processed([item.picture for item in pool])
    places = torch.from_numpy(np.stack([item.places for item in pool]))
    labels = torch.arange(BATCH) >= BATCH // 2
    changed = places[1::2].mean((1, 2))
    weights = torch.where(changed < FAINT, FAINT_WEIGHT, 1.0)
    wanted = labels.long().to(device)

    def loss_of(step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        safe = 2 * torch.multinomial(weights, BATCH // 2, replacement=True, generator=step.noise)
        chosen = torch.cat([safe, safe + 1])
        batch, checkered = _turned(step, pixels[chosen], places[chosen])
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
