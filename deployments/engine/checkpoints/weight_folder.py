"""A folder of weights that requests name: LoRAs, ControlNets, upscalers. A name is never a path.

Names and headers are read but no weights, because the front uses the folders too. Files may come and go while the
service runs, so a folder is read at each call.
"""

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from deployments.engine.checkpoints.files import PICKLES, resolve_source
from deployments.engine.errors import CheckpointError, InvalidRequest

SUFFIX = ".safetensors"
CONFIG = "config.json"

_NAME = re.compile(r"(?!\s)[^\x00-\x1f\x7f<>:/\\]{1,128}(?<!\s)")
_SHOWN = 64  # characters of an unknown name that an error repeats

Entry = TypeVar("Entry")
FilesState = tuple[tuple[int, int], ...]


class WeightFolder(ABC, Generic[Entry]):
    """The safetensors files of a folder by their names without the ending, and for some kinds its diffusers folders.

    Attributes:
        kind: name of an entry in messages.
        field: of the request that names entries.
        refusal: class of the error for an entry that can't be used.
        diffusers_folders: whether a folder with a config.json is an entry, too.
    """

    kind: ClassVar[str]
    field: ClassVar[str]
    refusal: ClassVar[type[InvalidRequest]]
    diffusers_folders: ClassVar[bool] = False

    def __init__(self, source: str | None) -> None:
        """`source`: a path, "package:<package>/<folder>" or None. Raises CheckpointError if there is no such folder."""
        self._folder: Path | None = None
        if source is not None:
            self._folder = resolve_source(source) if source.startswith("package:") else Path(source).expanduser()
            if not self._folder.is_dir():
                raise CheckpointError(f"{source}: expected a folder of {self.kind}s")

    def names(self) -> tuple[str, ...]:
        """The entries' names in alphabetical order."""
        if self._folder is None:
            return ()
        names = {path.stem for path in self._folder.iterdir() if path.suffix == SUFFIX and path.is_file()}
        if self.diffusers_folders:
            names |= {path.parent.name for path in self._folder.glob(f"*/{CONFIG}")}
        return tuple(sorted(filter(_is_name, names)))

    def find(self, name: str) -> Entry:
        """The entry of this name; the diffusers folder if there is a file, too.

        Raises:
            InvalidRequest: `refusal`, if there is none, or it is a pickle, cut short, or something else.
        """
        if self._folder is not None and _is_name(name):
            folder, file = self._folder / name, self._folder / f"{name}{SUFFIX}"
            try:
                if self.diffusers_folders and (folder / CONFIG).is_file():
                    return self._describe(name, folder)
                if file.is_file():
                    return self._describe(name, file)
            except (CheckpointError, OSError) as error:
                raise self.unreadable(name, error, self._folder) from None
            pickle = next((suffix for suffix in PICKLES if (self._folder / f"{name}{suffix}").is_file()), None)
            if pickle is not None:
                raise self.refused(
                    name, f"is a {pickle} file: a pickle can run code when it is read; convert it to {SUFFIX}"
                )
        shown = ascii(name)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
        raise self.refusal(f"no {self.kind} named {shown}", self.field)

    @classmethod
    def refused(cls, name: str, why: str) -> InvalidRequest:
        """The error for an entry that can't be used; `why` follows its name in the message."""
        return cls.refusal(f"{cls.kind} {name!r} {why}", cls.field)

    @classmethod
    def unreadable(cls, name: str, error: Exception, folder: Path) -> InvalidRequest:
        """The error for files that can't be read, without the folder's path, which clients mustn't learn."""
        return cls.refused(name, f"can't be read: {str(error).replace(f'{folder}/', '')}")

    @abstractmethod
    def _describe(self, name: str, path: Path) -> Entry:
        """The entry of a file or a diffusers folder. Raises CheckpointError or OSError."""


def files_state(files: tuple[Path, ...]) -> FilesState:
    """Size and time of change of each file: they show that one was replaced."""
    return tuple((status.st_size, status.st_mtime_ns) for status in (file.stat() for file in files))


def _is_name(name: str) -> bool:
    """Whether something in a folder may be called so: no path, and nothing that a prompt's tag can't hold."""
    return _NAME.fullmatch(name) is not None and name not in (".", "..")
