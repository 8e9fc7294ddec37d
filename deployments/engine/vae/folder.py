"""The VAEs that requests may name: the diffusers folders and safetensors files of one folder.

Reads names, configurations and headers but no weights, because the front uses it too. A name is never a path.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from deployments.engine.checkpoints.configs import check_vae, read_component
from deployments.engine.checkpoints.files import (
    DIFFUSERS_STEM,
    Weights,
    find_weights,
    hash_files,
    read_header,
    read_json,
)
from deployments.engine.checkpoints.single_file_header import VAE
from deployments.engine.checkpoints.weight_folder import CONFIG, FilesState, WeightFolder, files_state
from deployments.engine.config import VaesSettings
from deployments.engine.errors import CheckpointError, VaeRefused
from deployments.engine.families.family import FamilyName
from deployments.engine.families.registry import FAMILIES
from deployments.engine.types import DenoiseRequest

# layers that every VAE has, by diffusers' names and by the original code's
_ENDS = ("encoder.conv_in.weight", "decoder.conv_in.weight")
_OF_PICTURES = 4  # dimensions of the weights of a convolution
_SCALING_FACTOR = 0.18215  # AutoencoderKL's default


@dataclass(frozen=True, slots=True)
class VaeSource:
    """A VAE as its files describe it.

    Attributes:
        families: whose latents it may be for. A single file doesn't say: SD1.5's and SDXL's have the same shapes.
        weights: in diffusers' layout; or a single file, of a VAE or of a checkpoint.
        config: its checked config.json; None for a single file, which takes the checkpoint's.
        numbers: in all its tensors.
        written: sizes and modification times of the files.
    """

    name: str
    families: tuple[FamilyName, ...]
    weights: Weights | Path
    config: Mapping[str, Any] | None
    numbers: int
    written: FilesState

    @property
    def files(self) -> tuple[Path, ...]:
        """Of its weights."""
        return self.weights.files if isinstance(self.weights, Weights) else (self.weights,)


@dataclass(frozen=True, slots=True)
class VaeFile:
    """A VAE that a request names; `hash` is the SHA-256 (hex) over its weight files."""

    source: VaeSource
    hash: str


class VaeFinder:
    """Finds and hashes the VAEs of requests; each file is read whole once in a process."""

    def __init__(self, settings: VaesSettings) -> None:
        """Raises CheckpointError if the folder doesn't exist."""
        self._folder = VaeFolder(settings.folder)

    def find(self, request: DenoiseRequest) -> VaeFile | None:
        """The request's VAE; None if it names none. Raises VaeRefused."""
        if request.vae is None:
            return None
        source = self._folder.find(request.vae)
        return VaeFile(source, hash_files(source.files))


class VaeFolder(WeightFolder[VaeSource]):
    """VAEs by name: diffusers folders and single files."""

    kind, field, refusal = "VAE", "vae", VaeRefused
    diffusers_folders = True

    def find_for(self, name: str, family: FamilyName) -> VaeSource:
        """As `find`. Raises VaeRefused also if the VAE is for another family."""
        source = self.find(name)
        if family not in source.families:
            raise self.refused(name, f"is for {' and '.join(source.families)} models, not for {family}")
        return source

    def _describe(self, name: str, path: Path) -> VaeSource:
        return _in_folder(name, path) if path.is_dir() else _in_file(name, path)


def _in_folder(name: str, folder: Path) -> VaeSource:
    config = read_component(folder / CONFIG, "AutoencoderKL")
    families = tuple(_fitting(folder / CONFIG, config))
    scale = config.get("scaling_factor", _SCALING_FACTOR)
    of_scale = tuple(family for family in families if _published_scale(family) == scale)
    plain = any((folder / f"{DIFFUSERS_STEM}.safetensors{end}").is_file() for end in ("", ".index.json"))
    weights = find_weights(folder, DIFFUSERS_STEM, None if plain else "fp16")
    numbers = sum(math.prod(entry.shape) for file in weights.files for entry in read_header(file).tensors.values())
    # one of a scale that no published one has is compared with the checkpoint's own when it is loaded
    return VaeSource(name, of_scale or families, weights, config, numbers, files_state(weights.files))


def _in_file(name: str, file: Path) -> VaeSource:
    entries = read_header(file).tensors
    inside = {key.removeprefix(VAE): entry for key, entry in entries.items() if key.startswith(VAE)}
    shapes = {key: entry.shape for key, entry in (inside or entries).items()}
    encoder, decoder = (shapes.get(layer, ()) for layer in _ENDS)
    if not len(encoder) == len(decoder) == _OF_PICTURES:
        raise CheckpointError(f"{file}: expected the tensors of a VAE (AutoencoderKL), found none of them")
    channels = decoder[1]
    families = tuple(of_name for of_name, family in FAMILIES.items() if family.latent_channels == channels)
    if not families:
        known = " or ".join(sorted({str(family.latent_channels) for family in FAMILIES.values()}))
        raise CheckpointError(f"{file}: expected {known} latent channels, found {channels}")
    numbers = sum(map(math.prod, shapes.values()))
    return VaeSource(name, families, file, None, numbers, files_state((file,)))


def _fitting(path: Path, config: Mapping[str, Any]) -> list[FamilyName]:
    """The families whose latents are shaped so. Raises CheckpointError if there is none."""
    fitting: list[FamilyName] = []
    for name, family in FAMILIES.items():
        try:
            check_vae(path, config, family)
        except CheckpointError as error:
            reason = error
        else:
            fitting.append(name)
    if not fitting:
        raise reason
    return fitting


@cache
def _published_scale(name: FamilyName) -> object:
    """Of a family's latents: those of SD1.5 and of SDXL are told apart by nothing else."""
    return read_json(FAMILIES[name].published / "vae" / CONFIG).get("scaling_factor", _SCALING_FACTOR)
