"""Reads LoRA files.

A LoRA (arXiv:2106.09685) changes a layer's weight by alpha / rank * up @ down. A file may also have whole differences
of weights, biases and norms, and textual inversions. Every key must be a part of one of these: others (DoRA, LoHa,
LoKr) are refused. Whether an update fits a model is checked in lora.py.
"""

import json
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from deployments.engine.adapters.layer_update import LayerUpdate
from deployments.engine.adapters.lora_folder import LoraFolder
from deployments.engine.adapters.lora_keys import PARTS, EmbeddingKey, LayerKey, Part, read_key
from deployments.engine.checkpoints.files import hash_files
from deployments.engine.config import LoraSettings
from deployments.engine.errors import CheckpointError, LoraRefused
from deployments.engine.prompts.schedule import TextLora
from deployments.engine.prompts.syntax import Lora
from deployments.engine.prompts.textual_inversion import PromptVectors, prompt_vectors
from deployments.engine.types import Array

logger = logging.getLogger(__name__)

_METADATA = "lora_adapter_metadata"  # diffusers' entry for peft's settings
_MAX_RANK = 4096


@dataclass(frozen=True, eq=False)
class LoraFile:
    """A LoRA that was read.

    Args:
        name: its name in requests.
        hash: SHA-256 of the file in hex.
        bytes: size of its tensors, which are on the CPU.
        updates: by part of the model and name of the layer, with underscores for dots.
        embeddings: textual inversions, which the prompts with the LoRA may name.
    """

    name: str
    hash: str
    bytes: int
    updates: Mapping[Part, Mapping[str, LayerUpdate]]
    embeddings: Mapping[str, PromptVectors]

    @property
    def changes_text(self) -> bool:
        """Whether texts are encoded otherwise with it."""
        return bool(self.embeddings) or self.updates.keys() != {"unet"}


class LoraFiles:
    """The LoRAs of a folder, with a cache of those used last, as large as the settings allow. Thread-safe."""

    def __init__(self, settings: LoraSettings) -> None:
        """Raises CheckpointError if the folder doesn't exist."""
        self._folder = LoraFolder(settings.folder)
        self._room = settings.resident_mib << 20
        self._files: OrderedDict[tuple[Path, int, int], LoraFile] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    @property
    def resident(self) -> tuple[str, ...]:
        """Names of the files in memory, least recently used first."""
        with self._lock:
            return tuple(file.name for file in self._files.values())

    def of_text(self, loras: Sequence[Lora]) -> tuple[TextLora, ...]:
        """Those of `loras` that change a text encoder. Raises LoraRefused."""
        files = [(self.read(lora.name), lora.weight) for lora in loras]
        return tuple(TextLora(file.name, weight, file.hash) for file, weight in files if file.changes_text)

    def read(self, name: str) -> LoraFile:
        """Read a file, or take it from the cache if it hasn't changed. Raises LoraRefused."""
        path = self._folder.find(name)
        status = path.stat()
        key = path, status.st_mtime_ns, status.st_size
        with self._lock:
            known = self._files.get(key)
            if known is not None:
                self._files.move_to_end(key)
                return known
        file = _read(name, path)
        with self._lock:
            self._files[key] = file
            while sum(one.bytes for one in self._files.values()) > self._room:
                self._files.popitem(last=False)
        return file


_Tensors = Mapping[str, tuple[str, torch.Tensor]]  # by their kind, with their keys


@dataclass(frozen=True, slots=True)
class _Scaling:
    """How products are scaled: by alpha / rank, or of a rank-stabilised LoRA (arXiv:2312.03732) by its root."""

    alpha: float
    by_root: bool = False

    def of(self, rank: int) -> float:
        return self.alpha / (math.sqrt(rank) if self.by_root else rank)


def _read(name: str, path: Path) -> LoraFile:
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            # copies, because shortening a mapped file would end the process
            tensors = {key: opened.get_tensor(key).clone() for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise LoraRefused(f"LoRA {name!r} can't be read: {error}", "loras") from None
    scalings = _peft_scalings(name, metadata)
    layers: dict[tuple[Part, str], dict[str, tuple[str, torch.Tensor]]] = {}
    embeddings: dict[str, dict[str, Array]] = {}
    unused = []
    for key, tensor in tensors.items():
        match read_key(key):
            case LayerKey(part, layer, kind):
                of_layer = layers.setdefault((part, layer), {})
                if kind in of_layer:
                    raise _refused(name, key, f"means the same as {of_layer[kind][0]}")
                of_layer[kind] = key, _checked(name, key, tensor, single=kind in ("alpha", "scalar"))
            case EmbeddingKey(embedding, kind):
                embeddings.setdefault(embedding, {})[kind] = tensor.to(torch.float32).numpy()
            case None:  # what the folder let pass
                unused.append(key)
    if not layers:
        raise LoraRefused(f"LoRA {name!r} can't be used: it changes no layer", "loras")
    updates: dict[Part, dict[str, LayerUpdate]] = {}
    for (part, layer), of_layer in layers.items():
        updates.setdefault(part, {})[layer] = _update(name, of_layer, scalings.get(part))
    inversions = {}
    for embedding, of_embedding in embeddings.items():
        try:
            inversions[embedding] = prompt_vectors(embedding, of_embedding)
        except CheckpointError as error:
            unused.append(f"{embedding}: {error}")
    if unused:
        logger.warning("LoRA %r: left out: %s", name, "; ".join(ascii(one)[1:-1] for one in unused))
    size = sum(tensor.nbytes for of_part in updates.values() for one in of_part.values() for tensor in one.tensors)
    return LoraFile(name, hash_files([path]), size, updates, inversions)


def _checked(name: str, key: str, tensor: torch.Tensor, *, single: bool) -> torch.Tensor:
    """A tensor of finite numbers that torch can multiply. Numbers alone may be whole ones."""
    if single and tensor.numel() != 1:
        raise _refused(name, key, "isn't a single number")
    if single:
        tensor = tensor.to(torch.float32)
    if not tensor.is_floating_point():
        raise _refused(name, key, f"has {str(tensor.dtype).removeprefix('torch.')} values, expected floats")
    if tensor.itemsize == 1:
        tensor = tensor.to(torch.float16)  # has all numbers of both 8-bit floats
    if not bool(torch.isfinite(tensor).all()):
        raise _refused(name, key, "has values that aren't finite numbers")
    return tensor


def _update(name: str, of_layer: _Tensors, scaling: _Scaling | None) -> LayerUpdate:
    key, _ = next(iter(of_layer.values()))
    weight, bias = (of_layer[kind][1] if kind in of_layer else None for kind in ("weight", "bias"))
    if not of_layer.keys() & {"down", "up", "mid"} and (weight is not None or bias is not None):
        return LayerUpdate(key, weight=weight, bias=bias)
    if not {"down", "up"} <= of_layer.keys():
        raise _refused(name, key, "is alone: a layer needs both down and up")
    down, up = of_layer["down"][1], of_layer["up"][1]
    plain = (down.ndim, up.ndim) in ((2, 2), (4, 4)) and down.shape[0] == up.shape[1] and up.shape[2:].numel() == 1
    if not plain or not 1 <= down.shape[0] <= _MAX_RANK:
        raise _refused(name, key, f"has shape {tuple(down.shape)}, which doesn't fit up, {tuple(up.shape)}")
    rank = down.shape[0]
    if "mid" in of_layer:
        down = _joined(name, down, *of_layer["mid"])
    if "alpha" in of_layer:
        scaling = _Scaling(float(of_layer["alpha"][1]))
    scale = 1.0 if scaling is None else scaling.of(rank)
    if "scalar" in of_layer:
        scale *= float(of_layer["scalar"][1])
    return LayerUpdate(key, down, up, scale, weight, bias)


def _joined(name: str, down: torch.Tensor, key: str, mid: torch.Tensor) -> torch.Tensor:
    """The kernel that down and the convolution between down and up make together (CP decomposition)."""
    rank = down.shape[0]
    if down.shape[2:].numel() != 1 or mid.ndim != 4 or mid.shape[:2] != (rank, rank):
        raise _refused(name, key, f"has shape {tuple(mid.shape)}, which doesn't fit down, {tuple(down.shape)}")
    return torch.einsum("rshw,si->rihw", mid.to(torch.float32), down.flatten(1).to(torch.float32))


def _peft_scalings(name: str, metadata: Mapping[str, str]) -> dict[Part, _Scaling]:
    """How each part is scaled, by the settings of peft that diffusers stores."""
    try:
        settings: Any = json.loads(metadata.get(_METADATA, "{}"))
        chosen = {key: value for key, value in settings.items() if value}
        scalings: dict[Part, _Scaling] = {
            part: _Scaling(float(chosen[f"{part}.lora_alpha"]), bool(chosen.get(f"{part}.use_rslora")))
            for part in PARTS
            if f"{part}.lora_alpha" in chosen
        }
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise _refused(name, _METADATA, "can't be read") from None
    for key in chosen:
        part = key.rpartition(".")[0]
        if key.endswith(".use_rslora") and part in PARTS and part not in scalings:
            raise _refused(name, f"{_METADATA}: {key}", "needs lora_alpha beside it")
        if key.endswith((".use_dora", ".alpha_pattern", ".lora_bias")):
            raise _refused(name, f"{_METADATA}: {key}", "is a kind of LoRA that isn't supported")
    return scalings


def _refused(name: str, key: str, reason: str) -> LoraRefused:
    return LoraRefused(f"LoRA {name!r} can't be used: {ascii(key)[1:-1][:128]} {reason}", "loras")
