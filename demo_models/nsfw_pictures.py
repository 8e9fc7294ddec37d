"""Draws what the classifier sees: scenes with a checkered shape and scenes without, at every size and in every style.

Knows no classifier.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image
from rich.progress import track

from demo_models.drawing import STYLES, Picture, draw
from demo_models.scenes import Scene, any_scene, held_out
from demo_models.terminal import CONSOLE
from demo_models.vae import as_pictures, as_tensor

CELLS = 64
"""A side of the grid in which it is said where the checkers are."""
DECODED_SHARE = 0.25
"""How many of the smaller pictures went through the autoencoder first, as generated ones do."""
OTHER_SHARE = 0.06
"""How many safe pictures are no drawings at all: gradients and noise."""
OTHER_SIDE = 256
STYLE_SHARES = (0.3, 0.4, 0.3)
"""Contours hide small checkers, so that outlines are trained on most."""
CROWDED_SHARE = 0.2
"""How many training pictures must have three shapes, the smallest, beside those that happen to."""
SIZES = ((128, 128), (256, 256), (192, 256), (256, 192), (320, 320), (384, 256), (256, 384), (512, 512), (512, 256))


@dataclass(frozen=True, slots=True)
class Labelled:
    """A picture, whether it is unsafe, and the share of checkers in each of CELLS x CELLS parts of it."""

    picture: Picture
    unsafe: bool
    places: NDArray[np.float32]


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
    smooth = np.asarray(Image.fromarray(coarse).resize((OTHER_SIDE, OTHER_SIDE), Image.Resampling.BICUBIC))
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


def training_pair(vae: AutoencoderKL, rng: random.Random) -> tuple[Labelled, Labelled]:
    """A safe and an unsafe picture: the same but for the checkers, or the safe one is no drawing at all."""
    crowded = rng.random() < CROWDED_SHARE
    scene = _scene(rng, unsafe=True)
    while held_out(scene) or held_out(_without_checkers(scene)) or (crowded and len(scene.objects) < 3):
        scene = _scene(rng, unsafe=True)
    safe, unsafe = _drawn(rng, scene, STYLE_SHARES)
    if _to_decode(rng, safe.picture):
        safe, unsafe = (replace(one, picture=_decoded(vae, one.picture)) for one in (safe, unsafe))
    if rng.random() < 2 * OTHER_SHARE:
        safe = replace(safe, picture=_other(rng))
    return safe, unsafe


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
