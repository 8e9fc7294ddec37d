"""The IP-Adapters that requests may name: the safetensors files of one folder, in the layout of h94/IP-Adapter.

Reads names and headers but no weights, because the front uses it too.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deployments.engine.checkpoints.files import TensorEntry, hash_files, read_header
from deployments.engine.checkpoints.weight_folder import FilesState, WeightFolder, files_state
from deployments.engine.config import IpAdapterSettings
from deployments.engine.errors import CheckpointError, IpAdapterRefused
from deployments.engine.types import DenoiseRequest

PROJECTION, ATTENTION = "image_proj.", "ip_adapter."
_TOKENS = 4  # that the plain kind makes of a picture


@dataclass(frozen=True, slots=True)
class IpAdapterSource:
    """An IP-Adapter as its file's header describes it.

    Attributes:
        name: in the folder.
        file: its file.
        sees_patches: whether it takes the states of CLIP's patches ("plus" and "full face"), or the picture's
            projection.
        features: channels of what it takes.
        context_channels: of the text that it was trained beside: the UNet's cross_attention_dim.
        numbers: in all its tensors.
        written: size and modification time of the file.
    """

    name: str
    file: Path
    sees_patches: bool
    features: int
    context_channels: int
    numbers: int
    written: FilesState


@dataclass(frozen=True, slots=True)
class IpAdapterFile:
    """An IP-Adapter that a request names; `hash` is the SHA-256 (hex) of its file."""

    source: IpAdapterSource
    hash: str

    @property
    def name(self) -> str:
        """Its name in the folder."""
        return self.source.name


class IpAdapterFinder:
    """Finds and hashes the IP-Adapters of requests; each file is read whole once in a process."""

    def __init__(self, settings: IpAdapterSettings) -> None:
        """Raises CheckpointError if the folder doesn't exist."""
        self._folder = IpAdapterFolder(settings.folder)

    def find(self, request: DenoiseRequest) -> tuple[IpAdapterFile, ...]:
        """The request's IP-Adapters, in its order. Raises IpAdapterRefused."""
        sources = [self._folder.find(reference.name) for reference in request.references]
        return tuple(IpAdapterFile(source, hash_files((source.file,))) for source in sources)


class IpAdapterFolder(WeightFolder[IpAdapterSource]):
    """IP-Adapters by name."""

    kind, field, refusal = "IP-Adapter", "references", IpAdapterRefused

    def _describe(self, name: str, path: Path) -> IpAdapterSource:
        entries = read_header(path).tensors
        shapes = {
            key.removeprefix(PROJECTION): entry.shape for key, entry in entries.items() if key.startswith(PROJECTION)
        }
        kind = _kind(path, shapes)
        keys = sorted(key for key in entries if key.startswith(ATTENTION) and key.endswith(".to_k_ip.weight"))
        if not keys:
            raise CheckpointError(f"{path}: no tensor {ATTENTION}….to_k_ip.weight")
        return IpAdapterSource(
            name=name,
            file=path,
            sees_patches=kind != "proj.weight",
            features=_axis(path, shapes, kind, 1),
            context_channels=_axis(path, {key: entry.shape for key, entry in entries.items()}, keys[0], 1),
            numbers=_numbers(entries),
            written=files_state((path,)),
        )


def _kind(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The tensor that takes CLIP's features, by which the kinds are told apart as in diffusers' loader."""
    if "proj.weight" in shapes:
        return "proj.weight"
    if "perceiver_resampler.proj_in.weight" in shapes or "norm.weight" in shapes:
        raise CheckpointError(f"{path}: is a FaceID adapter, which needs a face recogniser that isn't here")
    if "proj.3.weight" in shapes:
        return "proj.0.weight"
    if "latents" in shapes:
        return "proj_in.weight"
    raise CheckpointError(f"{path}: expected the tensors of an IP-Adapter ({PROJECTION}…), found none of its kinds")


def _axis(path: Path, shapes: Mapping[str, tuple[int, ...]], key: str, axis: int) -> int:
    shape = shapes.get(key, ())
    if len(shape) <= axis:
        raise CheckpointError(f"{path}: expected a matrix {key}, found shape {tuple(shape)}")
    return int(shape[axis])


def _numbers(entries: Mapping[str, TensorEntry]) -> int:
    return sum(math.prod(entry.shape) for entry in entries.values())
