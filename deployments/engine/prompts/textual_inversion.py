"""Textual inversion: what a folder's safetensors files say instead of a few tokens, by the files' names.

One tensor of a name of its trainer's choice (SD1.5: "emb_params", or the placeholder), or "clip_l" and "clip_g" (SDXL).
Never a pickle. Knows nothing of prompts or encoders; whoever places the vectors checks that they fit.
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

    name: by which prompts call it. vectors: float32 (n, channels), 1 <= n <= 75, for each of the text encoders that it
        was made for, the first encoder's first.
    """

    name: str
    vectors: tuple[Array, ...]

    @property
    def tokens(self) -> int:
        """The places that it takes in a text."""
        return int(self.vectors[0].shape[0])


def read_prompt_vectors(folder: Path) -> Mapping[str, PromptVectors]:
    """Every textual inversion of a folder, by name, in alphabetical order.

    Raises CheckpointError, naming the file, for one that can't be read, is a pickle, or isn't of finite vectors.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a folder of textual inversions")
    found: dict[str, PromptVectors] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in _PICKLES:
            raise CheckpointError(f"{file}: a pickle can run code when it is read; convert it to .safetensors")
        if file.suffix.lower() == ".safetensors":
            if _NAME.fullmatch(file.stem) is None:
                raise CheckpointError(f"{file}: no prompt can call an embedding by this name")
            found[file.stem] = PromptVectors(file.stem, _read(file))
    return found


def _read(file: Path) -> tuple[Array, ...]:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{file}: {file.stat().st_size} bytes are too many for a textual inversion")
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: no safetensors file: {error}") from None
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
