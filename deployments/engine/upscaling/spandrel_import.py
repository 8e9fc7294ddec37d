"""Imports spandrel, with or without torchvision.

spandrel's top module imports all of its architectures, two of which (LaMa, RestoreFormer) take three functions from
torchvision. ESRGAN's family needs none of them, and some machines have no build of torchvision that fits their torch.
If it can't be imported, empty modules stand in for it during this one import; longer, and transformers would think that
torchvision is installed.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING

from deployments.engine.errors import CheckpointError

if TYPE_CHECKING:
    from spandrel import ArchRegistry

_FUNCTIONS = "torchvision.transforms.functional"
_MODULES = ("torchvision", "torchvision.transforms", _FUNCTIONS)
_NAMES = ("InterpolationMode", "rotate", "normalize")


def esrgan_family() -> "ArchRegistry":
    """spandrel's registry with the architectures of ESRGAN's family alone.

    Raises CheckpointError if spandrel isn't installed.
    """
    try:
        with _torchvision_or_names():
            from spandrel import ArchRegistry, ArchSupport
            from spandrel.architectures.Compact import CompactArch
            from spandrel.architectures.ESRGAN import ESRGANArch
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"upscalers need {error.name}, which isn't installed: pip install 'darkroom[upscale]'"
        ) from error
    registry = ArchRegistry()
    registry.add(ArchSupport.from_architecture(CompactArch()), ArchSupport.from_architecture(ESRGANArch()))
    return registry


@contextmanager
def _torchvision_or_names() -> Iterator[None]:
    try:
        importlib.import_module(_FUNCTIONS)
    except (ImportError, RuntimeError):  # the latter of a build for another torch
        pass
    else:
        yield
        return
    for name in _MODULES:
        sys.modules[name] = ModuleType(name)
    for name in _NAMES:
        setattr(sys.modules[_FUNCTIONS], name, None)
    try:
        yield
    finally:
        for name in _MODULES:
            del sys.modules[name]
