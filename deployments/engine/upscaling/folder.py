"""The upscalers that requests may name: the safetensors files of one folder, by their names without the ending.

Reads names and headers, no weights: the front asks it too. What a file's tensors are called and how large they are says
which architecture of ESRGAN's family it is, and how many times it enlarges. A name is never a path. Knows nothing of
torch.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Literal, TypeVar

from deployments.engine.checkpoints.files import PICKLES, read_header
from deployments.engine.checkpoints.weight_folder import find_folder, is_name, shown_name, without_folder, written_at
from deployments.engine.errors import CheckpointError, UpscalerRefused

_SUFFIX = ".safetensors"
_CHANNELS = 3
_WRAPPERS = ("module.", "netG.")

# ESRGAN's tensors are called in three ways: by its first code, by BasicSR and Real-ESRGAN, by RealSR and BSRGAN
_FIRST_NAMES = re.compile(r"model\.(\d{1,3})\.weight", re.ASCII)
_FIRST_MARKS = ("model.1.sub.0.RDB1.conv1.0.weight", "model.1.sub.0.RDB1.conv1x1.weight")
_LATER_MARKS = ("body.0.rdb1.conv1.weight", "RRDB_trunk.0.RDB1.conv1.weight")
_UPSAMPLING = re.compile(r"(?:upconv|conv_up)(\d)\.weight", re.ASCII)
_COMPACT = re.compile(r"body\.(\d{1,3})\.weight", re.ASCII)

Shapes = Mapping[str, tuple[int, ...]]
Tensor = TypeVar("Tensor")


@dataclass(frozen=True, slots=True)
class UpscalerSource:
    """An upscaler as its file describes it.

    architecture: as spandrel calls it. scale: how many times as wide and as high it makes a picture, 1 for one that
    only restores. multiple: of which the sides of what it is shown must be. written: size and time of change of the
    file.
    """

    name: str
    file: Path
    architecture: Literal["ESRGAN", "Compact"]
    scale: int
    multiple: int
    written: tuple[tuple[int, int], ...]


class UpscalerFolder:
    """What lies in the folder at the time that it is asked for: files may come and go while the service runs."""

    def __init__(self, source: str | None) -> None:
        """source: as UpscalerSettings.folder. Raises CheckpointError if there is no such folder."""
        self._folder = None if source is None else find_folder(source, "upscalers")

    def names(self) -> tuple[str, ...]:
        """In alphabetical order."""
        if self._folder is None:
            return ()
        files = (file.stem for file in self._folder.iterdir() if file.suffix == _SUFFIX and file.is_file())
        return tuple(sorted(name for name in files if is_name(name)))

    def find(self, name: str) -> UpscalerSource:
        """The upscaler of this name.

        Raises UpscalerRefused if there is none, it is a pickle, cut short, of another architecture, or not for pictures
        of three channels.
        """
        if self._folder is None or not is_name(name):
            raise _unknown(name)
        file = self._folder / f"{name}{_SUFFIX}"
        if not file.is_file():
            raise self._missing(name)
        try:
            shapes = {tensor: entry.shape for tensor, entry in read_header(file).items()}
            architecture, scale, multiple = _read(file, unwrapped(shapes))
            return UpscalerSource(name, file, architecture, scale, multiple, written_at((file,)))
        except (CheckpointError, OSError) as error:
            raise _refused(name, f"can't be used: {without_folder(self._folder, error)}") from None

    def _missing(self, name: str) -> UpscalerRefused:
        pickle = next((kind for kind in PICKLES if self._folder and (self._folder / f"{name}{kind}").is_file()), None)
        if pickle is None:
            return _unknown(name)
        return _refused(name, f"is a {pickle} file: a pickle can run code when it is read; convert it to .safetensors")


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By their own names, where training code has put something before all of them."""
    found = dict(tensors)
    for wrapper in _WRAPPERS:
        if found and all(name.startswith(wrapper) for name in found):
            found = {name.removeprefix(wrapper): tensor for name, tensor in found.items()}
    return found


def _read(file: Path, shapes: Shapes) -> tuple[Literal["ESRGAN", "Compact"], int, int]:
    """Architecture, scale, multiple. Raises CheckpointError."""
    try:
        if any(mark in shapes for mark in _LATER_MARKS):
            times = max((int(found[1]) for name in shapes if (found := _UPSAMPLING.fullmatch(name))), default=0)
            sides = shapes["conv_first.weight"][1], shapes["conv_last.weight"][0]
            return "ESRGAN", *_esrgan_scale(file, 2**times, *sides)
        if any(mark in shapes for mark in _FIRST_MARKS):
            last = max(int(found[1]) for name in shapes if (found := _FIRST_NAMES.fullmatch(name)))
            sides = shapes["model.0.weight"][1], shapes[f"model.{last}.weight"][0]
            return "ESRGAN", *_esrgan_scale(file, 2 ** ((last - 4) // 3), *sides)
        if _is_compact(shapes):
            last = max(int(found[1]) for name in shapes if (found := _COMPACT.fullmatch(name)))
            scale = isqrt(shapes[f"body.{last}.weight"][0] // _CHANNELS)
            _check_channels(file, shapes["body.0.weight"][1], shapes[f"body.{last}.weight"][0] // scale**2)
            return "Compact", scale, 1
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"{file}: its tensors are no whole model's ({error})") from None
    raise CheckpointError(f"{file}: not of ESRGAN's family, which alone can be used (ESRGAN, Real-ESRGAN, its Compact)")


def _is_compact(shapes: Shapes) -> bool:
    """Convolutions and the activations between them, one number a channel, and nothing else."""
    first, second = shapes.get("body.0.weight", ()), shapes.get("body.1.weight", ())
    return len(first) == 4 and second == first[:1] and all(name.startswith("body.") for name in shapes)


def _esrgan_scale(file: Path, scale: int, seen: int, made: int) -> tuple[int, int]:
    """Scale and multiple. seen, made: channels; some of Real-ESRGAN's are shown 2 x 2 or 4 x 4 pixels as one."""
    together = {4 * made: 2, 16 * made: 4}.get(seen, 1)
    _check_channels(file, seen // together**2, made)
    return scale // together, 4 if together > 1 else 1


def _check_channels(file: Path, seen: int, made: int) -> None:
    if (seen, made) != (_CHANNELS, _CHANNELS):
        raise CheckpointError(f"{file}: made for pictures of {seen} channels into {made}, not for colours")


def _unknown(name: str) -> UpscalerRefused:
    return UpscalerRefused(f"no upscaler named {shown_name(name)}", "upscaler")


def _refused(name: str, why: str) -> UpscalerRefused:
    return UpscalerRefused(f"upscaler {name!r} {why}", "upscaler")
