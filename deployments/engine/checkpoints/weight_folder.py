"""A folder of weights that requests name: LoRAs, ControlNets, upscalers, embeddings. A name is never a path.

Names and headers are read but no weights, because the front uses the folders too. Files may come and go while the
service runs, so a folder is read at each call; what a file says is remembered until it changes. A file that can't be
used is left out of the folder's names, with its reason.
"""

import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from deployments.engine.checkpoints.files import PICKLES, SUFFIX, is_safetensors, resolve_source
from deployments.engine.errors import CheckpointError, InvalidRequest

logger = logging.getLogger(__name__)

CONFIG = "config.json"

_SHOWN = 64  # characters of an unknown name that an error repeats
_KNOWN = 20  # names that it offers in its place

Entry = TypeVar("Entry")
FilesState = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class FolderContents:
    """What a folder offers: the names of its entries in alphabetical order, and why others are skipped."""

    names: tuple[str, ...]
    skipped: Mapping[str, str]


class WeightFolder(ABC, Generic[Entry]):
    """The safetensors files of a folder by their names without the ending, and for some kinds its diffusers folders.

    Those of its subfolders, too: users sort their files into them, and name a file without its folder, as in
    AUTOMATIC1111. Of two with one name the one nearer to the top counts, and a pickle never before another file. Links
    to folders, hidden folders, and those that this user may not read are left out.

    Attributes:
        folder: None for none.
        is_packaged: whether it lies in a Python package, whose files are nobody else's to change.
        kind: name of an entry in messages.
        field: of the request that names entries.
        refusal: class of the error for an entry that can't be used.
        diffusers_folders: whether a folder with a config.json is an entry, too.
        allowed: names; no path, and nothing that a prompt's tag can't hold.
    """

    kind: ClassVar[str]
    field: ClassVar[str]
    refusal: ClassVar[type[InvalidRequest]]
    diffusers_folders: ClassVar[bool] = False
    allowed: ClassVar[re.Pattern[str]] = re.compile(r"(?!\s)[^\x00-\x1f\x7f<>:/\\]{1,128}(?<!\s)")

    def __init__(self, source: str | None) -> None:
        """`source`: a path, "package:<package>/<folder>" or None. Raises CheckpointError if there is no such folder."""
        self.folder: Path | None = None
        self.is_packaged = source is not None and source.startswith("package:")
        self._known: dict[Path, tuple[FilesState, Entry | InvalidRequest]] = {}
        self._logged: frozenset[tuple[str, str]] = frozenset()
        if source is not None:
            self.folder = resolve_source(source) if self.is_packaged else Path(source).expanduser()
            if not self.folder.is_dir():
                raise CheckpointError(f"{source}: expected a folder of {self.kind}s")

    def names(self) -> tuple[str, ...]:
        """The names of the entries that can be used, in alphabetical order."""
        return self.contents().names

    def entries(self) -> Mapping[str, Entry]:
        """The entries that can be used, by name, in alphabetical order."""
        return self._read()[0]

    def contents(self) -> FolderContents:
        """What the folder offers."""
        usable, skipped = self._read()
        return FolderContents(tuple(usable), skipped)

    def _read(self) -> tuple[dict[str, Entry], dict[str, str]]:
        """The entries, and why others are skipped. The log says so of each once."""
        usable: dict[str, Entry] = {}
        skipped: dict[str, str] = {}
        for name, path in sorted(self._paths().items()):
            try:
                usable[name] = self._entry(name, path)
            except InvalidRequest as error:
                skipped[name] = error.message
        for _, reason in skipped.items() - self._logged:
            logger.warning("%s: skipped", reason)
        self._logged = frozenset(skipped.items())
        return usable, skipped

    def find(self, name: str) -> Entry:
        """The entry of this name; the diffusers folder if there is a file, too.

        Raises:
            InvalidRequest: `refusal`, if there is none, or it is a pickle, cut short, or something else.
        """
        path = self.path_of(name)
        if path is not None:
            return self._entry(name, path)
        shown = ascii(name)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
        names = self.names()
        known = ", ".join(names[:_KNOWN]) + (", …" if len(names) > _KNOWN else "")
        raise self.refusal(f"no {self.kind} named {shown}; known: {known or 'none'}", self.field)

    def check_file(self, name: str, path: Path) -> Entry:
        """What a file that lies elsewhere would be in this folder under a name.

        Raises:
            InvalidRequest: `refusal`, if it couldn't be used.
        """
        entry = self._described(name, path)
        if isinstance(entry, InvalidRequest):
            raise entry
        return entry

    def path_of(self, name: str) -> Path | None:
        """Where the entry of this name lies, whether or not it can be used; None if there is none."""
        if self.folder is None or not self.is_name(name):
            return None
        folder, file = self.folder / name, self.folder / f"{name}{SUFFIX}"
        if self.diffusers_folders and (folder / CONFIG).is_file():
            return folder
        if file.is_file():
            return file
        return self._paths().get(name)  # in capitals, in a subfolder, or a pickle

    def _paths(self) -> Mapping[str, Path]:
        """What is meant by each name, whether or not it can be used."""
        paths: dict[str, Path] = {}
        for path in self._walk():
            name = path.name if path.is_dir() else path.stem
            if name not in paths or (_is_pickle(paths[name]) and not _is_pickle(path)):
                paths[name] = path
        return paths

    def _walk(self) -> Iterator[Path]:
        """All that may be meant as an entry, what is nearer to the top first."""
        folders = [] if self.folder is None else [self.folder]
        for folder in folders:  # which grows: the nearer to the top, the earlier
            for path in sorted(folder.iterdir()):
                if not path.is_dir():
                    if is_safetensors(path) or _is_pickle(path):
                        yield path
                elif self.diffusers_folders and (path / CONFIG).is_file():
                    yield path
                elif not (path.is_symlink() or path.name.startswith(".")) and os.access(path, os.R_OK | os.X_OK):
                    folders.append(path)

    def _entry(self, name: str, path: Path) -> Entry:
        """What `_describe` says of it now, or said before. Raises InvalidRequest."""
        try:
            state = files_state(tuple(sorted(path.iterdir())) if path.is_dir() else (path,))
        except OSError as error:
            raise self.unreadable(name, error, path.parent) from None
        known = self._known.get(path)
        if known is None or known[0] != state:
            known = self._known[path] = state, self._described(name, path)
        _, entry = known
        if isinstance(entry, InvalidRequest):
            raise self.refusal(entry.message, entry.field)
        return entry

    def _described(self, name: str, path: Path) -> Entry | InvalidRequest:
        if _is_pickle(path) and path.is_file():
            reason = f"is a {path.suffix} file: a pickle can run code when it is read; convert it to {SUFFIX}"
            return self.refused(name, reason)
        if not self.is_name(name):
            return self.refused(name, "has a name that requests can't say: rename it")
        try:
            return self._describe(name, path)
        except InvalidRequest as error:
            return error
        except (CheckpointError, OSError) as error:
            return self.unreadable(name, error, path.parent)

    @classmethod
    def is_name(cls, name: str) -> bool:
        """Whether requests can name an entry so."""
        return cls.allowed.fullmatch(name) is not None and name not in (".", "..")

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


def _is_pickle(path: Path) -> bool:
    return path.suffix.lower() in PICKLES


def files_state(files: tuple[Path, ...]) -> FilesState:
    """Size and time of change of each file: they show that one was replaced."""
    return tuple((status.st_size, status.st_mtime_ns) for status in (file.stat() for file in files))
