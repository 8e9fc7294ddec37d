"""Which checkpoints are loaded: least recently used out first, never one that lanes are using.

Loads and evicts; knows nothing of when a load should happen (engine.py decides that).
"""

import ctypes
import gc
import sys
from collections import OrderedDict
from collections.abc import Callable, Collection

import torch

from deployments.engine.denoiser import Denoiser
from deployments.engine.errors import DoesNotFit


class Residency:
    """Up to `capacity` denoisers by checkpoint name."""

    def __init__(self, capacity: int, load: Callable[[str], Denoiser]) -> None:
        self._capacity = capacity
        self._load = load
        self._denoisers: OrderedDict[str, Denoiser] = OrderedDict()  # least recently used first

    @property
    def names(self) -> tuple[str, ...]:
        """What is loaded, least recently used first."""
        return tuple(self._denoisers)

    def __contains__(self, name: str) -> bool:
        return name in self._denoisers

    def __getitem__(self, name: str) -> Denoiser:
        self._denoisers.move_to_end(name)
        return self._denoisers[name]

    def can_load(self, in_use: Collection[str]) -> bool:
        """Whether there is room, or an idle checkpoint to evict."""
        return len(self._denoisers) < self._capacity or any(name not in in_use for name in self._denoisers)

    def load(self, name: str, in_use: Collection[str]) -> Denoiser:
        """Load `name`, evicting an idle one first if there is no room: the two are never in memory together.

        Raises DoesNotFit if every one is in use, and CheckpointError as the loader does; what was evicted by then
        stays out.
        """
        while len(self._denoisers) >= self._capacity:
            idle = next((other for other in self._denoisers if other not in in_use), None)
            if idle is None:
                raise DoesNotFit(f"no room for {name!r}: every resident checkpoint is in use")
            del self._denoisers[idle]
            release_memory()
        denoiser = self._load(name)
        self._denoisers[name] = denoiser
        return denoiser


def release_memory() -> None:
    """Give freed weights back to the device and to the operating system.

    Modules hold reference cycles (hooks, parametrisations), hence the collection; glibc keeps freed arenas, hence the
    trim: without it, swapping checkpoints on a CPU grows the process.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
