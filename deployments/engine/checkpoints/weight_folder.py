"""What folders of named weights have in common: names that are no paths, and messages that show none.

Knows nothing of what the files hold.
"""

import re
from pathlib import Path

from deployments.engine.checkpoints.files import resolve_source
from deployments.engine.errors import CheckpointError

_NAME = re.compile(r"(?!\s)[^\x00-\x1f\x7f<>:/\\]{1,128}(?<!\s)")
_SHOWN = 64


def find_folder(source: str, of: str) -> Path:
    """What a setting names, a path or "package:<package>/<folder>". Raises CheckpointError if it is no folder."""
    folder = resolve_source(source) if source.startswith("package:") else Path(source).expanduser()
    if not folder.is_dir():
        raise CheckpointError(f"{source}: expected a folder of {of}")
    return folder


def is_name(name: str) -> bool:
    """Whether something in a folder may be called so: never a path, and nothing that a prompt's tag can't hold."""
    return _NAME.fullmatch(name) is not None and name not in (".", "..")


def shown_name(name: str) -> str:
    """A name that isn't known, as an error repeats it."""
    shown = ascii(name)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def without_folder(folder: Path, error: Exception) -> str:
    """What is wrong with a file, by its name alone: where it lies is no client's business."""
    return str(error).replace(f"{folder}/", "")


def written_at(files: tuple[Path, ...]) -> tuple[tuple[int, int], ...]:
    """Size and time of change of each: what shows that one was replaced."""
    return tuple((status.st_size, status.st_mtime_ns) for status in (file.stat() for file in files))
