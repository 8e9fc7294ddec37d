"""Checkpoints at their real size with random weights, as users have them, and LoRAs of a real rank.

They take gigabytes: they are written once a session into a folder that is deleted, or kept in that of REAL_SIZE_FOLDER.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from benchmarks.real_architectures import UNETS
from deployments.engine.families.family import FamilyName


@contextmanager
def folder() -> Iterator[Path]:
    """Where checkpoints are, or will be."""
    kept = os.environ.get("REAL_SIZE_FOLDER")
    if kept is not None:
        Path(kept).mkdir(parents=True, exist_ok=True)
        yield Path(kept)
        return
    with tempfile.TemporaryDirectory(prefix="darkroom-real-size-") as name:
        yield Path(name)


def written(path: Path, write: Callable[[Path], object]) -> Path:
    """A file or folder, written whole unless it is there."""
    if not path.exists():
        unfinished = path.with_name(f"unfinished-{path.name}")
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        write(unfinished)
        unfinished.rename(path)
    return path


def write_lora(path: Path, family: FamilyName, rank: int) -> None:
    """A LoRA of all linear layers of the UNet's transformers, as kohya's scripts name them, in 16 bits.

    It changes a layer's output by about a tenth.
    """
    with init_empty_weights():
        unet = UNet2DConditionModel(**UNETS[family])
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, module in unet.named_modules():
        if ".transformer_blocks." not in name or not isinstance(module, torch.nn.Linear):
            continue
        key = f"lora_unet_{name.replace('.', '_')}"
        down = torch.randn(rank, module.in_features, generator=generator, dtype=torch.float32)
        up = torch.randn(module.out_features, rank, generator=generator, dtype=torch.float32)
        # of random weights' own variance: 1 / (3 * in_features)
        up *= 0.1 * (3 * module.in_features * rank) ** -0.5
        tensors[f"{key}.lora_down.weight"] = down.to(torch.float16)
        tensors[f"{key}.lora_up.weight"] = up.to(torch.float16)
        tensors[f"{key}.alpha"] = torch.tensor(float(rank), dtype=torch.float16)
    save_file(tensors, path)
