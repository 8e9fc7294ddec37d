"""The ControlNets that requests may name: the diffusers folders and safetensors files of one folder.

Reads names, configurations and headers, no weights: the front asks it too. A name is never a path.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.engine.checkpoints.configs import read_component
from deployments.engine.checkpoints.files import (
    DIFFUSERS_STEM,
    PICKLES,
    TensorEntry,
    find_weights,
    hash_files,
    read_header,
)
from deployments.engine.checkpoints.weight_folder import find_folder, is_name, shown_name, without_folder, written_at
from deployments.engine.config import ControlnetSettings
from deployments.engine.errors import CheckpointError, ControlnetRefused
from deployments.engine.families.family import FamilyName
from deployments.engine.families.registry import FAMILIES
from deployments.engine.types import DenoiseRequest

_SUFFIX = ".safetensors"
_CONFIG = "config.json"
LDM_PREFIX = "control_model."
# what every ControlNet has, in diffusers' names and in the original code's
_MARKS = ("controlnet_cond_embedding.", f"{LDM_PREFIX}input_hint_block.", "input_hint_block.")
# what those have whose UNets take a pooled embedding
_ADDED = ("add_embedding.", "label_emb.")


@dataclass(frozen=True, slots=True)
class ControlnetSource:
    """A ControlNet as its files describe it.

    families: whose UNets have the conditions that it has; whether its shapes are a model's is seen when it is loaded.
    files: of its weights. config: of its config.json, checked; None for a single file. numbers: in all its tensors.
    written: sizes and times of change of the files.
    """

    name: str
    families: tuple[FamilyName, ...]
    files: tuple[Path, ...]
    config: Mapping[str, Any] | None
    numbers: int
    written: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ControlnetFile:
    """A ControlNet that a request names. hash: sha256 (hex) over its weight files."""

    source: ControlnetSource
    hash: str

    @property
    def name(self) -> str:
        """In the folder."""
        return self.source.name


class ControlnetFinder:
    """Finds and hashes the ControlNets of requests; each file is read whole once in a process."""

    def __init__(self, settings: ControlnetSettings) -> None:
        """Raises CheckpointError if the folder isn't there."""
        self._folder = ControlnetFolder(settings.folder)

    def find(self, request: DenoiseRequest) -> tuple[ControlnetFile, ...]:
        """The request's, in its order. Raises ControlnetRefused."""
        sources = [self._folder.find(control.name) for control in request.controls]
        return tuple(ControlnetFile(source, hash_files(source.files)) for source in sources)


class ControlnetFolder:
    """What lies in the folder at the time that it is asked for: ControlNets may come and go while the service runs."""

    def __init__(self, source: str | None) -> None:
        """source: as ControlnetSettings.folder. Raises CheckpointError if there is no such folder."""
        self._folder = None if source is None else find_folder(source, "ControlNets")

    def names(self) -> tuple[str, ...]:
        """In alphabetical order."""
        if self._folder is None:
            return ()
        files = [path.stem for path in self._folder.iterdir() if path.suffix == _SUFFIX and path.is_file()]
        folders = [path.parent.name for path in self._folder.glob(f"*/{_CONFIG}")]
        return tuple(sorted(name for name in {*files, *folders} if is_name(name)))

    def find(self, name: str, family: FamilyName | None = None) -> ControlnetSource:
        """The ControlNet of this name; its folder, where there is a file of this name too.

        family: what it has to be for. Raises ControlnetRefused if there is none, it is a pickle, cut short, something
        else, or for another family.
        """
        if self._folder is None or not is_name(name):
            raise _unknown(name)
        folder, file = self._folder / name, self._folder / f"{name}{_SUFFIX}"
        try:
            if (folder / _CONFIG).is_file():
                found = _in_folder(name, folder)
            elif file.is_file():
                found = _in_file(name, file)
            else:
                raise self._missing(name)
        except (CheckpointError, OSError) as error:
            raise refused(name, f"can't be read: {without_folder(self._folder, error)}") from None
        if family is not None and family not in found.families:
            raise refused(name, f"is for {' and '.join(found.families)} models, not for {family}")
        return found

    def _missing(self, name: str) -> ControlnetRefused:
        pickle = next((kind for kind in PICKLES if self._folder and (self._folder / f"{name}{kind}").is_file()), None)
        if pickle is None:
            return _unknown(name)
        return refused(name, f"is a {pickle} file: a pickle can run code when it is read; convert it to .safetensors")


def _in_folder(name: str, folder: Path) -> ControlnetSource:
    config = read_component(folder / _CONFIG, "ControlNetModel")
    plain = any((folder / f"{DIFFUSERS_STEM}.safetensors{end}").is_file() for end in ("", ".index.json"))
    files = find_weights(folder, DIFFUSERS_STEM, None if plain else "fp16").files
    entries = {key: entry for file in files for key, entry in read_header(file).items()}
    embedding = config.get("addition_embed_type")
    families = _families(embedding)
    if not families:
        raise CheckpointError(
            f"{folder / _CONFIG}: addition_embed_type {embedding!r} is no family's that is known here"
        )
    return _source(name, families, files, config, entries)


def _in_file(name: str, file: Path) -> ControlnetSource:
    entries = read_header(file)
    if not any(key.startswith(_MARKS) for key in entries):
        raise CheckpointError(f"{file}: its tensors are no ControlNet's")
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
    return ControlnetSource(name, families, files, config, numbers, written_at(files))


def _unknown(name: str) -> ControlnetRefused:
    return ControlnetRefused(f"no ControlNet named {shown_name(name)}", "controlnets")


def refused(name: str, why: str) -> ControlnetRefused:
    """The error that says why a ControlNet can't be used."""
    return ControlnetRefused(f"ControlNet {name!r} {why}", "controlnets")
