"""Encodes drawings once, so that the diffusion models train on latents alone.

A latent's scene is not stored: it follows from its number, and its caption is drawn anew at every use.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo_models.drawing import Picture, draw
from demo_models.scenes import Scene, training_scene
from demo_models.terminal import CONSOLE
from demo_models.vae import as_tensor

Size = tuple[int, int]
"""Height and width in pixels."""

COUNTS: dict[Size, int] = {
    (128, 128): 6_000,
    (192, 192): 1_000,
    (256, 256): 6_000,
    (192, 256): 1_800,
    (256, 192): 1_800,
    (320, 320): 800,
}
BATCH_PIXELS = 16 * 256 * 256


def training_drawing(number: int, size: Size, style: str) -> tuple[Scene, Picture]:
    """The scene behind one latent, and its picture."""
    rng = random.Random(f"latent {size} {number}")
    scene = training_scene(rng)
    return scene, draw(scene, *size, rng, style)


def training_scene_of(number: int, size: Size) -> Scene:
    return training_scene(random.Random(f"latent {size} {number}"))


def latents_path(folder: Path, style: str, size: Size) -> Path:
    return folder / "latents" / style / f"{size[0]}x{size[1]}.safetensors"


def write_latents(vae: AutoencoderKL, folder: Path, style: str, size: Size, count: int, device: str) -> None:
    """Encode `count` drawings of a size; does nothing when they are there already."""
    path = latents_path(folder, style, size)
    if path.exists() and len(load_file(path)["latents"]) >= count:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    batch = max(1, BATCH_PIXELS // (size[0] * size[1]))
    parts: list[Tensor] = []
    starts = range(0, count, batch)
    with torch.inference_mode():
        for start in track(starts, f"latents {style} {size[0]}x{size[1]}", console=CONSOLE):
            numbers = range(start, min(count, start + batch))
            pictures = [training_drawing(number, size, style)[1] for number in numbers]
            mean = vae.encode(as_tensor(pictures).to(device)).latent_dist.mean
            parts.append((mean * vae.config.scaling_factor).half().cpu())
    save_file({"latents": torch.cat(parts).contiguous()}, path)


def read_latents(folder: Path, style: str) -> dict[Size, Tensor]:
    """Every size that was encoded for a style."""
    found = {}
    for path in sorted((folder / "latents" / style).glob("*.safetensors")):
        height, width = path.stem.split("x")
        found[int(height), int(width)] = load_file(path)["latents"]
    if not found:
        raise FileNotFoundError(f"no latents of style {style!r} in {folder}: run the latents stage first")
    return found
