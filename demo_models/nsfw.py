"""The demo classifier: calls a picture unsafe when something in it is checkered.

A drawn texture stands in for unsafe content, so that the whole path (draw, classify, blur or refuse) can be
shown and tested without any.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from diffusers import AutoencoderKL
from PIL import Image
from rich.progress import track
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from demo_models.drawing import STYLES, Picture, draw
from demo_models.loop import Loss, Step
from demo_models.scenes import Scene, any_scene, held_out
from demo_models.terminal import CONSOLE
from demo_models.vae import as_pictures, as_tensor

LABELS = {0: "normal", 1: "nsfw"}
SIDE = 96
BATCH = 64
POOL = 4000
DECODED_SHARE = 0.35
"""How many pictures went through the autoencoder first, as generated ones do."""
OTHER_SHARE = 0.06
"""How many safe pictures are no drawings at all: gradients and noise."""
SIZES = ((128, 128), (256, 256), (192, 256), (256, 192), (320, 320), (384, 256), (256, 384), (512, 512), (512, 256))


def new_classifier() -> ViTForImageClassification:
    config = ViTConfig(
        image_size=SIDE,
        patch_size=8,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=LABELS,
        label2id={label: number for number, label in LABELS.items()},
    )
    return ViTForImageClassification(config)


def new_processor() -> ViTImageProcessorPil:
    return ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})


def labelled_scene(rng: random.Random, unsafe: bool, held: bool = False) -> Scene:
    """A scene with a checkered shape, or with none."""
    while True:
        scene = any_scene(rng)
        marked = rng.randrange(len(scene.objects)) if unsafe else None
        objects = tuple(
            replace(item, texture="checkered" if number == marked else "plain")
            for number, item in enumerate(scene.objects)
        )
        scene = replace(scene, objects=objects)
        if held_out(scene) == held:
            return scene


def _other(rng: random.Random) -> Picture:
    """Something that is no drawing: a gradient with noise on it."""
    noise = np.random.default_rng(rng.getrandbits(32))
    coarse = noise.integers(0, 256, (rng.randint(1, 4), rng.randint(1, 4), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((SIDE * 2, SIDE * 2), Image.Resampling.BICUBIC))
    grain = noise.normal(0, rng.choice([0, 5, 40]), smooth.shape)
    return (smooth + grain).clip(0, 255).astype(np.uint8)


def labelled_pictures(vae: AutoencoderKL, count: int, seed: str, held: bool = False) -> tuple[list[Picture], list[int]]:
    """Pictures of all sizes and styles, half of them unsafe."""
    pictures, labels = [], []
    for number in track(range(count), "pictures to classify", console=CONSOLE):
        rng = random.Random(f"classified {seed} {number}")
        unsafe = number % 2 == 1
        if not unsafe and rng.random() < 2 * OTHER_SHARE:
            picture = _other(rng)
        else:
            picture = draw(labelled_scene(rng, unsafe, held), *rng.choice(SIZES), rng, rng.choice(STYLES))
            if rng.random() < DECODED_SHARE and picture.size < 400_000:
                with torch.inference_mode():
                    picture = as_pictures(vae.decode(vae.encode(as_tensor([picture])).latent_dist.mean).sample)[0]
        pictures.append(picture)
        labels.append(int(unsafe))
    return pictures, labels


def processed(pictures: list[Picture]) -> Tensor:
    processor = new_processor()
    # One by one: they differ in size.
    found = [processor(Image.fromarray(p), return_tensors="pt").pixel_values for p in pictures]
    return torch.cat(found)


def classifier_loss(classifier: ViTForImageClassification, pixels: Tensor, labels: Tensor, device: str) -> Loss:
    """Cross-entropy on the pool, with shifts of brightness and a little noise."""

    def loss_of(step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = torch.randint(len(pixels), (BATCH,), generator=step.noise)
        batch = pixels[chosen]
        if step.words.random() < 0.5:
            batch = batch.flip(-1)
        shift = 0.1 * torch.randn(BATCH, 3, 1, 1, generator=step.noise)
        grain = 0.04 * torch.randn(batch.shape, generator=step.noise)
        wanted = labels[chosen].to(device)
        logits = classifier(pixel_values=(batch + shift + grain).to(device)).logits
        right = (logits.argmax(1) == wanted).float().mean()
        return F.cross_entropy(logits, wanted), {"right": right}

    return loss_of
