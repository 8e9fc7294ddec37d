"""Draws the classifier's training pairs once, in parts, so that an interrupted drawing goes on.

A pair is the same picture without its checkers and with them, at the classifier's own size. Each follows from the
seed and its number alone. Knows no training.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import ViTImageProcessorPil

from demo_models.drawing import Picture
from demo_models.nsfw import Pairs, new_processor
from demo_models.nsfw_pictures import training_pair
from demo_models.terminal import CONSOLE

PART = 500
"""Pairs in one file."""


def write_pairs(vae: Path, folder: Path, count: int, seed: int, processes: int) -> None:
    """Draw `count` pairs into `folder`; parts that lie there already stay.

    One process is this one: a new one takes ten seconds to import what it draws with.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [
        (path, range(start, min(start + PART, count)))
        for start in range(0, count, PART)
        if not (path := _part(folder, seed, start, min(start + PART, count))).exists()
    ]
    draw: Callable[[tuple[Path, range]], None] = partial(_write_part, vae, seed)
    with ExitStack() as stack:
        drawn: Iterator[None] = map(draw, missing)
        if processes > 1:
            drawn = stack.enter_context(ProcessPoolExecutor(processes, get_context("spawn"))).map(draw, missing)
        for _ in track(drawn, "pairs to classify", len(missing), console=CONSOLE):
            pass


def read_pairs(folder: Path, count: int, seed: int) -> Pairs:
    """The first `count` pairs. Raises FileNotFoundError when they weren't all drawn."""
    parts = [_part(folder, seed, start, min(start + PART, count)) for start in range(0, count, PART)]
    if absent := [part for part in parts if not part.exists()]:
        raise FileNotFoundError(f"{absent[0]}: run the nsfw-pairs stage first")
    loaded = [load_file(part) for part in parts]
    return Pairs(torch.cat([one["pictures"] for one in loaded]), torch.cat([one["places"] for one in loaded]))


def _part(folder: Path, seed: int, start: int, end: int) -> Path:
    return folder / f"{seed}-{start:06}-{end:06}.safetensors"


def _write_part(vae_folder: Path, seed: int, part: tuple[Path, range]) -> None:
    path, numbers = part
    torch.set_num_threads(1)
    vae = AutoencoderKL.from_pretrained(vae_folder, dtype=torch.float32)
    processor = new_processor()
    drawn = [training_pair(vae, random.Random(f"pairs {seed} {number}")) for number in numbers]
    pictures = torch.stack([torch.stack([_small(processor, one.picture) for one in pair]) for pair in drawn])
    places = torch.stack([torch.from_numpy(unsafe.places) for _, unsafe in drawn])
    unfinished = path.with_suffix(".partial")
    save_file({"pictures": pictures, "places": (places * 255).round().to(torch.uint8)}, unfinished)
    unfinished.replace(path)


def _small(processor: ViTImageProcessorPil, picture: Picture) -> Tensor:
    """At the classifier's size, by its own processor's way of resizing, in bytes (3, SIDE, SIDE)."""
    sized = processor(Image.fromarray(picture), do_rescale=False, do_normalize=False, return_tensors="pt")
    pixels: Tensor = sized.pixel_values[0]
    return pixels
