"""Reads LoRA files in kohya's and diffusers' formats.

A LoRA (arXiv:2106.09685) changes a layer's weight by alpha / rank * up @ down. Every key of a file must be a part of
such an update: others (DoRA, LoHa, LoKr, a bias) are refused. Whether an update fits a model is checked in lora.py.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from deployments.engine.adapters.layer_names import Part
from deployments.engine.adapters.lora_folder import LoraFolder
from deployments.engine.checkpoints.files import hash_files
from deployments.engine.config import LoraSettings
from deployments.engine.errors import LoraRefused
from deployments.engine.prompts.schedule import TextLora
from deployments.engine.prompts.syntax import Lora

# beginnings of keys
_PREFIXES: dict[str, Part] = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "unet.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
}
# kohya's form, peft's, and two older ones of diffusers
_KEY = re.compile(
    r"(?P<layer>.+?)(?:\.(?:lora_|lora\.|lora_linear_layer\.)|_lora\.)(?P<matrix>down|up|A|B)(?:\.default)?\.weight"
)
_ALPHA = re.compile(r"(?P<layer>.+)\.alpha")
_DOWN, _UP = ("down", "A"), ("up", "B")
_METADATA = "lora_adapter_metadata"  # diffusers' entry for peft's settings
_MAX_RANK = 4096


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """An update of one layer: scale * up @ down.

    Args:
        down: (rank, in), or for a convolution (rank, in, height, width).
        up: (out, rank), or (out, rank, 1, 1).
        scale: alpha / rank.
        key: one of the file's keys, for errors.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    key: str


@dataclass(frozen=True, eq=False)
class LoraFile:
    """A LoRA that was read.

    Args:
        name: its name in requests.
        hash: SHA-256 of the file in hex.
        bytes: size of its tensors, which are on the CPU.
        updates: by part of the model and name of the layer, with underscores for dots.
    """

    name: str
    hash: str
    bytes: int
    updates: Mapping[Part, Mapping[str, LowRank]]

    @property
    def changes_text(self) -> bool:
        """Whether it changes a text encoder."""
        return self.updates.keys() != {"unet"}


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


def _read(name: str, path: Path) -> LoraFile:
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            # copies, because shortening a mapped file would end the process
            tensors = {key: opened.get_tensor(key).clone() for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise LoraRefused(f"LoRA {name!r} can't be read: {error}", "loras") from None
    alphas = _configured_alphas(name, metadata)
    matrices: dict[tuple[Part, str], dict[str, tuple[str, torch.Tensor]]] = {}
    for key, tensor in tensors.items():
        part, bare = _part(key)
        found, alpha = _KEY.fullmatch(bare), _ALPHA.fullmatch(bare)
        if found is not None:
            kind = "down" if found["matrix"] in _DOWN else "up"
            of_layer = matrices.setdefault((part, _spelled(part, found["layer"])), {})
        elif alpha is not None:
            kind = "alpha"
            of_layer = matrices.setdefault((part, _spelled(part, alpha["layer"])), {})
        else:
            raise _refused(name, key, "is unknown: only up, down and alpha of layers are supported")
        if kind in of_layer:
            raise _refused(name, key, f"means the same as {of_layer[kind][0]}")
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise _refused(name, key, "has values that aren't finite numbers")
        of_layer[kind] = key, tensor
    updates: dict[Part, dict[str, LowRank]] = {}
    for (part, layer), of_layer in matrices.items():
        updates.setdefault(part, {})[layer] = _update(name, of_layer, alphas.get(part))
    size = sum(tensor.nbytes for tensor in tensors.values())
    return LoraFile(name, hash_files([path]), size, updates)


def _update(name: str, of_layer: Mapping[str, tuple[str, torch.Tensor]], configured: float | None) -> LowRank:
    key, _ = next(iter(of_layer.values()))
    if not {"down", "up"} <= of_layer.keys():
        raise _refused(name, key, "is alone: a layer needs both down and up")
    down, up = of_layer["down"][1], of_layer["up"][1]
    plain = (down.ndim, up.ndim) in ((2, 2), (4, 4)) and down.shape[0] == up.shape[1] and up.shape[2:].numel() == 1
    if not plain or not 1 <= down.shape[0] <= _MAX_RANK:
        raise _refused(
            name,
            key,
            f"has shape {tuple(down.shape)}, which doesn't fit up, {tuple(up.shape)}",
        )
    rank = down.shape[0]
    if "alpha" in of_layer:
        if of_layer["alpha"][1].numel() != 1:
            raise _refused(name, of_layer["alpha"][0], "isn't a single number")
        alpha = float(of_layer["alpha"][1])
    else:
        alpha = rank if configured is None else configured
    return LowRank(down, up, alpha / rank, key)


def _part(key: str) -> tuple[Part, str]:
    """The part of the model that a key belongs to, and the key without its beginning."""
    for prefix, part in _PREFIXES.items():
        if key.startswith(prefix):
            return part, key.removeprefix(prefix).removeprefix("base_model.model.")
    return "unet", key.removeprefix("base_model.model.")


def _spelled(part: Part, layer: str) -> str:
    """A layer's name as unet_layers and text_layers spell it; old diffusers files name attention's processors."""
    layer = layer.replace(".processor.", ".")
    layer = layer.removesuffix("to_out") + "to_out.0" if layer.endswith("to_out") else layer
    if part != "unet":
        if not layer.startswith(("text_model", "text_projection")):
            layer = f"text_model.{layer}"
        layer = re.sub(r"\.to_(q|k|v)$", r".\1_proj", layer)
        layer = re.sub(r"\.to_out\.0$", ".out_proj", layer)
    return layer.replace(".", "_")


def _configured_alphas(name: str, metadata: Mapping[str, str]) -> dict[Part, float]:
    """The alpha of each part, from the settings of peft that diffusers stores."""
    try:
        settings: Any = json.loads(metadata.get(_METADATA, "{}"))
        chosen = {key: value for key, value in settings.items() if value}
        alphas: dict[Part, float] = {
            part: float(chosen[f"{part}.lora_alpha"])
            for part in dict.fromkeys(_PREFIXES.values())
            if f"{part}.lora_alpha" in chosen
        }
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise _refused(name, _METADATA, "can't be read") from None
    for key in chosen:
        if key.endswith((".use_dora", ".use_rslora", ".alpha_pattern", ".lora_bias")):
            raise _refused(name, f"{_METADATA}: {key}", "is a kind of LoRA that isn't supported")
    return alphas


def _refused(name: str, key: str, reason: str) -> LoraRefused:
    return LoraRefused(f"LoRA {name!r} can't be used: {ascii(key)[1:-1][:128]} {reason}", "loras")
