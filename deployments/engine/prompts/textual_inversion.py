"""Textual inversions (arXiv:2208.01618): embeddings that replace a few tokens, one safetensors file each.

A file has one tensor of any name (SD1.5: "emb_params", or the placeholder), or "clip_l" and "clip_g" (SDXL). Whether
the vectors fit an encoder is checked where they are placed. Pickles are refused.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from deployments.engine.errors import CheckpointError
from deployments.engine.types import Array

MAX_VECTORS = 75  # one chunk of tokens
_MAX_BYTES = 4 << 20  # 75 vectors of SDXL's encoders take 0.6 MB
_NAME = re.compile(r"[^\x00-\x1f\x7f<>()\[\]:|\\]{1,64}")
_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_BOTH = frozenset({"clip_l", "clip_g"})


@dataclass(frozen=True, slots=True, eq=False)
class PromptVectors:
    """One textual inversion.

    Args:
        name: its name in prompts.
        vectors: for each text encoder of its kind of model, in order: float32 (n, channels), 1 <= n <= 75.
    """

    name: str
    vectors: tuple[Array, ...]

    @property
    def tokens(self) -> int:
        """Number of tokens that it takes in a text."""
        return int(self.vectors[0].shape[0])


def read_prompt_vectors(folder: Path) -> Mapping[str, PromptVectors]:
    """Every textual inversion of a folder, by name, in alphabetical order.

    Raises CheckpointError, naming the file, for one that is unreadable, a pickle, or not of finite vectors.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a folder of textual inversions")
    inversions: dict[str, PromptVectors] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in _PICKLES:
            raise CheckpointError(f"{file}: pickles can run code when they are read; convert it to .safetensors")
        if file.suffix.lower() == ".safetensors":
            if _NAME.fullmatch(file.stem) is None:
                raise CheckpointError(f"{file}: prompts can't name an embedding like this; rename the file")
            inversions[file.stem] = PromptVectors(file.stem, _read(file))
    return inversions


def _read(file: Path) -> tuple[Array, ...]:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise CheckpointError(
                f"{file}: {file.stat().st_size} bytes, more than the {_MAX_BYTES} of the largest textual inversion"
            )
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: not a safetensors file: {error}") from None
    if tensors.keys() >= _BOTH:
        chosen = [tensors["clip_l"], tensors["clip_g"]]
    elif len(tensors) == 1:
        chosen = list(tensors.values())
    else:
        raise CheckpointError(f"{file}: expected one tensor, or clip_l and clip_g, not {', '.join(sorted(tensors))}")
    vectors = tuple(_checked(file, tensor) for tensor in chosen)
    if len({one.shape[0] for one in vectors}) > 1:
        raise CheckpointError(f"{file}: clip_l and clip_g have different numbers of vectors")
    return vectors


def _checked(file: Path, tensor: torch.Tensor) -> Array:
    tensor = tensor.unsqueeze(0) if tensor.ndim == 1 else tensor
    if not tensor.is_floating_point() or tensor.ndim != 2 or not 1 <= tensor.shape[0] <= MAX_VECTORS:
        raise CheckpointError(
            f"{file}: expected 1 to {MAX_VECTORS} vectors, not {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    array: Array = tensor.float().numpy()
    if not np.isfinite(array).all():
        raise CheckpointError(f"{file}: a vector isn't finite")
    return array
