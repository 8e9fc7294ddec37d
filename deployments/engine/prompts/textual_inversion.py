"""Textual inversions (arXiv:2208.01618): embeddings that replace a few tokens, one safetensors file each.

A file has one tensor of any name (SD1.5: "emb_params", or the placeholder), or "clip_l" and "clip_g" (SDXL). Whether
the vectors fit an encoder is checked where they are placed. Torch-free, because the front lists them too.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deployments.engine.checkpoints.files import TensorEntry, hash_files, read_data, read_header
from deployments.engine.checkpoints.weight_folder import WeightFolder
from deployments.engine.errors import CheckpointError, InvalidRequest
from deployments.engine.types import Array

MAX_VECTORS = 75  # one chunk of tokens
_MAX_BYTES = 4 << 20  # 75 vectors of SDXL's encoders take 0.6 MB
_BOTH = frozenset({"clip_l", "clip_g"})
_FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}
_BFLOAT16 = "BF16"


@dataclass(frozen=True, slots=True, eq=False)
class PromptVectors:
    """One textual inversion.

    Args:
        name: its name in prompts.
        vectors: for each text encoder of its kind of model, in order: float32 (n, channels), 1 <= n <= 75.
        hash: SHA-256 of its file in hex; None for one that comes in a LoRA's file.
    """

    name: str
    vectors: tuple[Array, ...]
    hash: str | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens that it takes in a text."""
        return int(self.vectors[0].shape[0])

    @property
    def channels(self) -> int:
        """Of all encoders together."""
        return sum(int(of_encoder.shape[1]) for of_encoder in self.vectors)


class EmbeddingFolder(WeightFolder[PromptVectors]):
    """Textual inversions by name."""

    kind, field, refusal = "embedding", "prompt", InvalidRequest
    allowed = re.compile(r"[^\x00-\x1f\x7f<>()\[\]:|/\\]{1,64}")  # what prompts can name

    def _describe(self, name: str, path: Path) -> PromptVectors:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise CheckpointError(f"{size} bytes, more than the {_MAX_BYTES} of the largest textual inversion")
        entries = read_header(path).tensors
        tensors = {tensor: _floats(path, entry) for tensor, entry in entries.items()}
        return prompt_vectors(name, tensors, hash_files([path]))


def prompt_vectors(name: str, tensors: Mapping[str, Array], file_hash: str | None = None) -> PromptVectors:
    """The textual inversion of a file's tensors.

    Raises CheckpointError if prompts can't have its name, or its tensors aren't finite vectors.
    """
    if EmbeddingFolder.allowed.fullmatch(name) is None:
        raise CheckpointError("prompts can't name an embedding like this; rename it")
    if tensors.keys() >= _BOTH:
        chosen = [tensors["clip_l"], tensors["clip_g"]]
    elif len(tensors) == 1:
        chosen = list(tensors.values())
    else:
        raise CheckpointError(f"expected one tensor, or clip_l and clip_g, not {', '.join(sorted(tensors))}")
    vectors = tuple(map(_checked, chosen))
    if len({one.shape[0] for one in vectors}) > 1:
        raise CheckpointError("clip_l and clip_g have different numbers of vectors")
    return PromptVectors(name, vectors, file_hash)


def _floats(path: Path, entry: TensorEntry) -> Array:
    data = read_data(path, entry)
    if entry.dtype == _BFLOAT16:  # the upper half of a float32
        floats = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif entry.dtype in _FLOATS:
        floats = np.frombuffer(data, _FLOATS[entry.dtype]).astype(np.float32)
    else:
        raise CheckpointError(f"expected floats of 16, 32 or 64 bits, not {entry.dtype}")
    return floats.reshape(entry.shape)


def _checked(array: Array) -> Array:
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or not 1 <= array.shape[0] <= MAX_VECTORS:
        raise CheckpointError(f"expected 1 to {MAX_VECTORS} vectors, not numbers of shape {array.shape}")
    if not np.isfinite(array).all():
        raise CheckpointError("a vector isn't finite")
    return array
