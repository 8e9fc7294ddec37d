"""The wildcards that prompts may name: text files of one folder and its subfolders, a line for each value.

Files may come and go while the service runs, so the folder is read at each call. A request's name never becomes a path.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from serve_app.observability.logs import get_logger

log = get_logger(__name__)

_ENDING = ".txt"
_LARGEST = 1 << 20  # bytes of a file
_MOST_FILES = 10_000


class WildcardFolder:
    """Wildcards by name: a file's path in the folder, without its ending."""

    def __init__(self, folder: str | None) -> None:
        """None for none; a folder that isn't there has no files."""
        self._folder = None if folder is None else Path(folder).expanduser()
        self._known: dict[Path, tuple[tuple[int, int], tuple[str, ...]]] = {}

    def read(self) -> Mapping[str, Sequence[str]]:
        """The lines of each file that has some, by name in alphabetical order."""
        paths: dict[str, Path] = {}
        for name, path in self._walk():
            if len(paths) == _MOST_FILES:
                log.warning("only some of the wildcards are used", folder=str(self._folder), most=_MOST_FILES)
                break
            paths[name] = path
        return {name: lines for name, path in sorted(paths.items()) if (lines := self._read(path))}

    def _walk(self) -> Iterator[tuple[str, Path]]:
        """The files and their names, without hidden ones and without following links to folders."""
        if self._folder is None:
            return
        for folder, subfolders, files in os.walk(self._folder):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for path in (Path(folder, name) for name in sorted(files) if not name.startswith(".")):
                if path.suffix == _ENDING:
                    yield path.relative_to(self._folder).with_suffix("").as_posix(), path

    def _read(self, path: Path) -> tuple[str, ...]:
        """A file's lines; none if it can't be read."""
        try:
            status = path.stat()
            state = status.st_size, status.st_mtime_ns
            known = self._known.get(path)
            if known is None or known[0] != state:
                known = self._known[path] = state, _lines(path, status.st_size)
        except OSError as error:
            log.warning("a wildcard's file can't be read", file=path.name, cause=repr(error))
            return ()
        return known[1]


def _lines(path: Path, size: int) -> tuple[str, ...]:
    """Without comments and empty lines. Raises OSError."""
    if size > _LARGEST:
        log.warning("a wildcard's file is skipped: it is too large", file=path.name, bytes=size, most=_LARGEST)
        return ()
    lines = (line.strip() for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))
