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
BATCH = 64
POOL = 5000
"""Pairs of a safe and an unsafe picture."""
DECODED_SHARE = 0.25
"""How many of the smaller pictures went through the autoencoder first, as generated ones do."""
OTHER_SHARE = 0.06
"""How many safe pictures are no drawings at all: gradients and noise."""
STYLE_SHARES = (0.25, 0.5, 0.25)
"""Contours hide small checkers, so that outlines are trained on most."""
CROWDED_SHARE = 0.25
"""How many training pictures must have three shapes, the smallest, beside those that happen to."""
CHECKERED_PATCH = 0.12
"""From this share of second-tone pixels on, a patch counts as checkered."""
SIZES = ((128, 128), (256, 256), (192, 256), (256, 192), (320, 320), (384, 256), (256, 384), (512, 512), (512, 256))


class Watched(nn.Module):
    """A classifier that must also say where the checkers are, without which it finds nothing to start from."""

    def __init__(self, classifier: ViTForImageClassification) -> None:
        super().__init__()
        self.classifier = classifier
        self.where = nn.Linear(classifier.config.hidden_size, 1)


@dataclass(frozen=True, slots=True)
class Labelled:
    """A picture, whether it is unsafe, and the share of checkers in each of its patches."""

    picture: Picture
    unsafe: bool
    places: NDArray[np.float32]


def new_classifier() -> ViTForImageClassification:
    config = ViTConfig(
        image_size=SIDE,
        patch_size=PATCH,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
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
    patches = Image.fromarray(differs.astype(np.uint8) * 255).resize((SIDE // PATCH,) * 2, Image.Resampling.BOX)
    places = np.asarray(patches, dtype=np.float32).ravel() / np.float32(255)
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
            found.append(Labelled(_other(rng), False, np.zeros((SIDE // PATCH) ** 2, dtype=np.float32)))
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
    """Cross-entropy on pairs of the pool, mirrored and turned, with shifts of brightness and a little noise."""
    pixels = processed([item.picture for item in pool])
    labels = torch.tensor([int(item.unsafe) for item in pool])
    cells = SIDE // PATCH
    places = torch.from_numpy(np.stack([item.places for item in pool])).view(-1, cells, cells) > CHECKERED_PATCH

    def loss_of(step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        safe = 2 * torch.randint(len(pixels) // 2, (BATCH // 2,), generator=step.noise)
        chosen = torch.cat([safe, safe + 1])
        shift = 0.1 * torch.randn(BATCH, 3, 1, 1, generator=step.noise)
        batch, checkered = _turned(step, pixels[chosen], places[chosen])
        batch = batch + shift + 0.04 * torch.randn(batch.shape, generator=step.noise)
        wanted = labels[chosen].to(device)
        classifier = watched.classifier
        states = classifier.vit(pixel_values=batch.to(device)).last_hidden_state
        logits = classifier.classifier(states[:, 0])
        found = watched.where(states[:, 1:]).squeeze(-1)
        where = F.binary_cross_entropy_with_logits(found, checkered.flatten(1).float().to(device))
        right = (logits.argmax(1) == wanted).float().mean()
        return F.cross_entropy(logits, wanted) + 4 * where, {"right": right, "where": where.detach()}

    return loss_of


def _turned(step: Step, pictures: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """One of the eight ways to lay a square, the same for pictures and places: a checker stays a checker."""
    for axis in (-1, -2):
        if step.words.random() < 0.5:
            pictures, places = pictures.flip(axis), places.flip(axis)
    if step.words.random() < 0.5:
        pictures, places = pictures.transpose(-1, -2), places.transpose(-1, -2)
    return pictures, places
