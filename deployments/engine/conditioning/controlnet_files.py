"""The ControlNets that requests may name: the diffusers folders and safetensors files of one folder.

Reads names, configurations and headers but no weights, because the front uses it too. A name is never a path.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.engine.checkpoints.configs import read_component
from deployments.engine.checkpoints.files import (
    DIFFUSERS_STEM,
    TensorEntry,
    find_weights,
    hash_files,
    read_header,
)
from deployments.engine.checkpoints.weight_folder import CONFIG, FilesState, WeightFolder, files_state
from deployments.engine.config import ControlnetSettings
from deployments.engine.errors import CheckpointError, ControlnetRefused
from deployments.engine.families.family import FamilyName
from deployments.engine.families.registry import FAMILIES
from deployments.engine.types import DenoiseRequest

LDM_PREFIX = "control_model."
# tensors of every ControlNet, by diffusers' names and by the original code's
_MARKS = ("controlnet_cond_embedding.", f"{LDM_PREFIX}input_hint_block.", "input_hint_block.")
# tensors of those whose UNets take a pooled embedding
_ADDED = ("add_embedding.", "label_emb.")


@dataclass(frozen=True, slots=True)
class ControlnetSource:
    """A ControlNet as its files describe it.

    Attributes:
        families: families whose UNets take the same conditions; its shapes are checked when it is loaded.
        files: of its weights.
        config: its checked config.json; None for a single file.
        numbers: in all its tensors.
        written: sizes and modification times of the files.
    """

    name: str
    families: tuple[FamilyName, ...]
    files: tuple[Path, ...]
    config: Mapping[str, Any] | None
    numbers: int
    written: FilesState


@dataclass(frozen=True, slots=True)
class ControlnetFile:
    """A ControlNet that a request names; `hash` is the SHA-256 (hex) over its weight files."""

    source: ControlnetSource
    hash: str

    @property
    def name(self) -> str:
        """Its name in the folder."""
        return self.source.name


class ControlnetFinder:
    """Finds and hashes the ControlNets of requests; each file is read whole once in a process."""

    def __init__(self, settings: ControlnetSettings) -> None:
        """Raises CheckpointError if the folder doesn't exist."""
        self._folder = ControlnetFolder(settings.folder)

    def find(self, request: DenoiseRequest) -> tuple[ControlnetFile, ...]:
        """The request's ControlNets, in its order. Raises ControlnetRefused."""
        sources = [self._folder.find(control.name) for control in request.controls]
        return tuple(ControlnetFile(source, hash_files(source.files)) for source in sources)


class ControlnetFolder(WeightFolder[ControlnetSource]):
    """ControlNets by name: diffusers folders and single files."""

    kind, field, refusal = "ControlNet", "controlnets", ControlnetRefused
    diffusers_folders = True

    def find_for(self, name: str, family: FamilyName) -> ControlnetSource:
        """As `find`. Raises ControlnetRefused also if the ControlNet is for another family."""
        source = self.find(name)
        if family not in source.families:
            raise self.refused(name, f"is for {' and '.join(source.families)} models, not for {family}")
        return source

    def _describe(self, name: str, path: Path) -> ControlnetSource:
        return _in_folder(name, path) if path.is_dir() else _in_file(name, path)


def _in_folder(name: str, folder: Path) -> ControlnetSource:
    config = read_component(folder / CONFIG, "ControlNetModel")
    plain = any((folder / f"{DIFFUSERS_STEM}.safetensors{end}").is_file() for end in ("", ".index.json"))
    files = find_weights(folder, DIFFUSERS_STEM, None if plain else "fp16").files
    entries = {key: entry for file in files for key, entry in read_header(file).tensors.items()}
    embedding = config.get("addition_embed_type")
    families = _families(embedding)
    if not families:
        raise CheckpointError(f"{folder / CONFIG}: addition_embed_type {embedding!r} is no family's that is known here")
    return _source(name, families, files, config, entries)


def _in_file(name: str, file: Path) -> ControlnetSource:
    entries = read_header(file).tensors
    if not any(key.startswith(_MARKS) for key in entries):
        raise CheckpointError(f"{file}: expected the tensors of a ControlNet, found none of them")
    added = any(key.removeprefix(LDM_PREFIX).startswith(_ADDED) for key in entries)
    return _source(name, _families("text_time" if added else None), (file,), None, entries)


def _families(addition_embed_type: object) -> tuple[FamilyName, ...]:
    return tuple(
        name
        for name, family in FAMILIES.items()
        if family.addition_embed_type == addition_embed_type and not family.refines
    )


def _source(
    name: str,
    families: tuple[FamilyName, ...],
    files: tuple[Path, ...],
    config: Mapping[str, Any] | None,
    entries: Mapping[str, TensorEntry],
) -> ControlnetSource:
    numbers = sum(math.prod(entry.shape) for entry in entries.values())
    return ControlnetSource(name, families, files, config, numbers, files_state(files))
