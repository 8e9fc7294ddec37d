"""Which checkpoints are loaded: least recently used out first, never one that lanes are using.

loop.py decides when one is loaded.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection

import torch

from deployments.engine.checkpoints.denoiser_weights import DenoiserTensors, DenoiserWeights, can_refill
from deployments.engine.denoising.denoiser import Denoiser
from deployments.engine.device import as_darkroom_error, release_memory
from deployments.engine.errors import DoesNotFit

Read = Callable[[str], DenoiserTensors]
Place = Callable[[str, DenoiserTensors, DenoiserWeights | None], Denoiser]


class Residency:
    """Up to `capacity` denoisers by checkpoint name."""

    def __init__(self, capacity: int, read: Read, place: Place) -> None:
        """`place` makes a denoiser, in the modules of another one that has left if there are any."""
        self._capacity = capacity
        self._read = read
        self._place = place
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
        """Load `name`, in the place of an idle one if there is no room: the two are never in memory together.

        An idle one of the same architecture leaves its models behind, which are filled anew. What was evicted stays out
        when the loading fails, and of what was to be loaded nothing stays in memory.

        Raises:
            DoesNotFit: every one is in use.
            CheckpointError: as the reader and the placer do.
            DarkroomError: placing failed for another reason.
        """
        read = self._read(name)
        weights = self._evict(in_use).weights if len(self._denoisers) >= self._capacity else None
        if weights is not None and not can_refill(weights, read):
            weights = None
            release_memory()
        try:
            denoiser = self._place(name, read, weights)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            failure = as_darkroom_error(error, f"checkpoint {name!r} could not be loaded")
        else:
            self._denoisers[name] = denoiser
            return denoiser
        # outside of the except block, in which the frames of the failed call still hold its models
        del read, weights
        release_memory()
        raise failure

    def drop(self, name: str) -> None:
        """Give back the memory of one that no lane uses, if it is loaded."""
        if self._denoisers.pop(name, None) is not None:
            release_memory()

    def _evict(self, in_use: Collection[str]) -> Denoiser:
        idle = next((name for name in self._denoisers if name not in in_use), None)
        if idle is None:
            raise DoesNotFit("every resident checkpoint is in use")
        return self._denoisers.pop(idle)
