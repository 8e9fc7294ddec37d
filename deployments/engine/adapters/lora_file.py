"""Reads LoRA files.

A LoRA (arXiv:2106.09685) changes a layer's weight by alpha / rank * up @ down. Files called LoRAs have other kinds of
changes, too (LyCORIS, layer_tensors.py reads them), and textual inversions. Every key must be a part of one of these.
Whether an update fits a model is checked in lora.py.
"""

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from deployments.engine.adapters.layer_tensors import LayerTensors, Scaling
from deployments.engine.adapters.layer_update import LayerUpdate
from deployments.engine.adapters.lora_folder import LoraFolder
from deployments.engine.adapters.lora_keys import PARTS, EmbeddingKey, LayerKey, Part, read_keys, shown
from deployments.engine.checkpoints.files import hash_files
from deployments.engine.config import LoraSettings
from deployments.engine.errors import CheckpointError, LoraRefused
from deployments.engine.prompts.schedule import TextLora
from deployments.engine.prompts.syntax import Lora
from deployments.engine.prompts.textual_inversion import PromptVectors, prompt_vectors
from deployments.engine.types import Array, TextEncodingRequest

logger = logging.getLogger(__name__)

_METADATA = "lora_adapter_metadata"  # diffusers' entry for peft's settings


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

    def of_regions(self, request: TextEncodingRequest) -> list[tuple[TextLora, ...]]:
        """As `of_text`, for each region's prompt; empty if all have the request's. Raises LoraRefused."""
        return [self.of_text(request.loras if own is None else own) for own in request.region_loras]

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
    meanings = read_keys(tensors)
    scalings = _peft_scalings(name, metadata, meanings.values())
    layers: dict[tuple[Part, str], LayerTensors] = {}
    embeddings: dict[str, dict[str, Array]] = {}
    unused = []
    for key, meaning in meanings.items():
        tensor = tensors[key]
        match meaning:
            case LayerKey(part, layer, kind):
                tensor = _checked(name, key, tensor, single=kind in ("alpha", "scalar", "on_input"))
                with _refusing(name):
                    layers.setdefault((part, layer), LayerTensors()).add(key, kind, tensor)
            case EmbeddingKey(embedding, kind):
                embeddings.setdefault(embedding, {})[kind] = tensor.to(torch.float32).numpy()
            case None:  # what the folder let pass
                unused.append(key)
    if not layers:
        raise LoraRefused(f"LoRA {name!r} can't be used: it changes no layer", "loras")
    updates: dict[Part, dict[str, LayerUpdate]] = {}
    for (part, layer), of_layer in layers.items():
        with _refusing(name):
            updates.setdefault(part, {})[layer] = of_layer.update(scalings.get(part))
    inversions = {}
    for embedding, of_embedding in embeddings.items():
        try:
            inversions[embedding] = prompt_vectors(embedding, of_embedding)
        except CheckpointError as error:
            unused.append(f"{embedding}: {error}")
    if unused:
        logger.warning("LoRA %r: left out: %s", name, "; ".join(ascii(one)[1:-1] for one in unused))
    size = sum(update.nbytes for of_part in updates.values() for update in of_part.values())
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


def _peft_scalings(
    name: str, metadata: Mapping[str, str], meanings: Iterable[LayerKey | EmbeddingKey | None]
) -> dict[Part, Scaling]:
    """How each part is scaled, by the settings of peft that diffusers stores. `meanings` of the file's keys."""
    try:
        settings: Any = json.loads(metadata.get(_METADATA, "{}"))
        chosen = {key: value for key, value in settings.items() if value}
        scalings: dict[Part, Scaling] = {
            part: Scaling(float(chosen[f"{part}.lora_alpha"]), bool(chosen.get(f"{part}.use_rslora")))
            for part in PARTS
            if f"{part}.lora_alpha" in chosen
        }
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise _refused(name, _METADATA, "can't be read") from None
    decomposed = {of.part for of in meanings if isinstance(of, LayerKey) and of.kind in ("magnitude", "dora_scale")}
    for key in chosen:
        part = key.rpartition(".")[0]
        if key.endswith(".use_rslora") and part in PARTS and part not in scalings:
            raise _refused(name, f"{_METADATA}: {key}", "needs lora_alpha beside it")
        if key.endswith(".use_dora") and part not in decomposed:
            raise _refused(name, f"{_METADATA}: {key}", "needs lora_magnitude_vector tensors, which the file lacks")
        if key.endswith((".alpha_pattern", ".lora_bias")):
            raise _refused(name, f"{_METADATA}: {key}", "is a kind of LoRA that isn't supported")
    return scalings


def _refused(name: str, key: str, reason: str) -> LoraRefused:
    return LoraRefused(f"LoRA {name!r} can't be used: {shown(key)} {reason}", "loras")


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Refuse the file for a ValueError, which names the key."""
    try:
        yield
    except ValueError as error:
        raise LoraRefused(f"LoRA {name!r} can't be used: {error}", "loras") from None
