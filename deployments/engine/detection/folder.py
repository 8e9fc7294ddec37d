"""The detectors that requests may name: a file's metadata says what its network is and what it finds."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deployments.engine.checkpoints.files import Header, read_header
from deployments.engine.checkpoints.weight_folder import FilesState, WeightFolder, files_state
from deployments.engine.errors import CheckpointError, DetectorRefused

ARCHITECTURE = "darkroom-grid"
"""Of detection/network.py."""

_WIDTH = range(8, 1025, 8)
_LEVELS = range(3, 8)
_SIDE = range(64, 2049)
_MOST_CLASSES = 1000
_CLASS = re.compile(r"(?!\s)[^\x00-\x1f\x7f,]{1,64}(?<!\s)")
_NUMBERS = re.compile(r"[0-9]{1,5}(,[0-9]{1,5}){0,15}", re.ASCII)


@dataclass(frozen=True, slots=True)
class DetectorSource:
    """A detector as its file describes it.

    Attributes:
        classes: what it finds, by the order of its channels.
        side: width and height in pixels at which it looks at a picture.
        widths: channels of its network's levels.
        written: size and modification time of the file.
    """

    name: str
    file: Path
    classes: tuple[str, ...]
    side: int
    widths: tuple[int, ...]
    written: FilesState


class DetectorFolder(WeightFolder[DetectorSource]):
    """Detectors by name."""

    kind, field, refusal = "detector", "details", DetectorRefused

    def _describe(self, name: str, path: Path) -> DetectorSource:
        header = read_header(path)
        metadata = header.metadata
        if metadata.get("architecture") != ARCHITECTURE:
            known = metadata.get("architecture", "")[:64]
            raise CheckpointError(f"{path}: expected metadata with architecture {ARCHITECTURE!r}, found {known!r}")
        widths = _numbers(path, metadata, "widths")
        if len(widths) not in _LEVELS or any(width not in _WIDTH for width in widths):
            raise CheckpointError(f"{path}: expected 3 to 7 widths, multiples of 8 up to 1024, found {widths}")
        (side, *more) = _numbers(path, metadata, "input_size")
        if more or side not in _SIDE or side % 2 ** len(widths):
            raise CheckpointError(
                f"{path}: expected an input_size of 64..2048, a multiple of {2 ** len(widths)}, found {side}"
            )
        classes = _classes(path, metadata)
        _check_head(path, header, len(classes))
        return DetectorSource(name, path, classes, side, widths, files_state((path,)))


def metadata_of(classes: tuple[str, ...], side: int, widths: tuple[int, ...]) -> dict[str, str]:
    """The metadata that a detector's file has."""
    return {
        "architecture": ARCHITECTURE,
        "classes": json.dumps(list(classes), ensure_ascii=False),
        "input_size": str(side),
        "widths": ",".join(str(width) for width in widths),
    }


def _numbers(path: Path, metadata: Mapping[str, str], key: str) -> tuple[int, ...]:
    text = metadata.get(key, "")
    if _NUMBERS.fullmatch(text) is None:
        raise CheckpointError(f"{path}: expected numbers as its metadata's {key}, found {text[:64]!a}")
    return tuple(int(number) for number in text.split(","))


def _classes(path: Path, metadata: Mapping[str, str]) -> tuple[str, ...]:
    try:
        names = json.loads(metadata.get("classes", ""))
    except (ValueError, RecursionError):
        names = None
    if (
        not isinstance(names, list)
        or not 1 <= len(names) <= _MOST_CLASSES
        or not all(isinstance(name, str) and _CLASS.fullmatch(name) for name in names)
        or len(set(names)) != len(names)
    ):
        raise CheckpointError(f"{path}: expected a JSON list of different names as its metadata's classes")
    return tuple(names)


def _check_head(path: Path, header: Header, classes: int) -> None:
    """Raise CheckpointError unless the last layer is one for so many classes; the others are checked when it loads."""
    head = header.tensors.get("head.bias")
    if head is None or head.shape != (classes + 4,):
        found = None if head is None else head.shape
        raise CheckpointError(f"{path}: expected a head.bias of {classes} classes and 4 edges, found {found}")
