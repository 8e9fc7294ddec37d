"""The upscalers that requests may name: the names and shapes of a file's tensors tell its architecture and scale."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Literal, TypeVar

from deployments.engine.checkpoints.files import read_header
from deployments.engine.checkpoints.weight_folder import FilesState, WeightFolder, files_state
from deployments.engine.errors import CheckpointError, UpscalerRefused

_CHANNELS = 3
_WRAPPERS = ("module.", "netG.")

# names of ESRGAN's tensors: in its first code; in BasicSR and Real-ESRGAN; in RealSR and BSRGAN
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

    Attributes:
        architecture: spandrel's name of it.
        scale: factor of width and height; 1 for one that only restores.
        multiple: the input's width and height must be multiples of it.
        written: size and modification time of the file.
    """

    name: str
    file: Path
    architecture: Literal["ESRGAN", "Compact"]
    scale: int
    multiple: int
    written: FilesState


class UpscalerFolder(WeightFolder[UpscalerSource]):
    """Upscalers by name."""

    kind, field, refusal = "upscaler", "upscaler", UpscalerRefused

    def _describe(self, name: str, path: Path) -> UpscalerSource:
        shapes = {tensor: entry.shape for tensor, entry in read_header(path).tensors.items()}
        architecture, scale, multiple = _read(path, unwrapped(shapes))
        return UpscalerSource(name, path, architecture, scale, multiple, files_state((path,)))


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the prefix that training code has put before all names."""
    found = dict(tensors)
    for wrapper in _WRAPPERS:
        if found and all(name.startswith(wrapper) for name in found):
            found = {name.removeprefix(wrapper): tensor for name, tensor in found.items()}
    return found


def _read(file: Path, shapes: Shapes) -> tuple[Literal["ESRGAN", "Compact"], int, int]:
    """Architecture, scale and multiple. Raises CheckpointError."""
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
        raise CheckpointError(f"{file}: its tensors aren't a complete model's ({error})") from None
    raise CheckpointError(f"{file}: expected a model of ESRGAN's family (ESRGAN, Real-ESRGAN or its Compact)")


def _is_compact(shapes: Shapes) -> bool:
    """Whether the model is convolutions and activations with one number a channel, and nothing else."""
    first, second = shapes.get("body.0.weight", ()), shapes.get("body.1.weight", ())
    return len(first) == 4 and second == first[:1] and all(name.startswith("body.") for name in shapes)


def _esrgan_scale(file: Path, scale: int, seen: int, made: int) -> tuple[int, int]:
    """Scale and multiple, from the input's and output's channels: some models take 2 x 2 or 4 x 4 pixels as one."""
    together = {4 * made: 2, 16 * made: 4}.get(seen, 1)
    _check_channels(file, seen // together**2, made)
    return scale // together, 4 if together > 1 else 1


def _check_channels(file: Path, seen: int, made: int) -> None:
    if (seen, made) != (_CHANNELS, _CHANNELS):
        raise CheckpointError(f"{file}: expected 3 channels in and out (RGB), found {seen} in and {made} out")
