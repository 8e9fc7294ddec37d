"""spandrel, without the library that it declares and doesn't need here.

spandrel's top module imports all of its architectures, two of which (LaMa, RestoreFormer) take three functions from
torchvision. None of ESRGAN's family does, and there are machines with no build of torchvision that goes with their
torch: where it can't be imported, names stand in for it, and for as long as that one import takes. Left there, they
would tell transformers that torchvision is installed.
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
    """spandrel's register of the architectures that are used here, and of no others.

    Raises CheckpointError where spandrel isn't installed.
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
