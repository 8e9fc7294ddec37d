"""Weights of one kind on the device, besides checkpoints: ControlNets, IP-Adapters."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Generic, Protocol, TypeVar

from deployments.engine.device import release_memory


class DeviceWeights(Protocol):
    """Weights on the device, shared by all lanes that use them; `hash` as of their WeightFile."""

    @property
    def hash(self) -> str: ...
    @property
    def bytes(self) -> int: ...


W = TypeVar("W", bound=DeviceWeights)


class WeightPool(Generic[W]):
    """Weights within `room` bytes: the least recently used leave first, those that lanes use stay.

    In the device's thread.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._weights: OrderedDict[str, W] = OrderedDict()  # by hash, least recently used first

    def has_room(self, sizes: dict[str, int], in_use: Collection[DeviceWeights]) -> bool:
        """Whether weights fit beside those that lanes use; True if they never fit.

        Args:
            sizes: bytes by hash.
            in_use: weights that lanes use; those of other kinds, which have rooms of their own, are ignored.
        """
        used = {weights.hash: weights.bytes for weights in in_use if weights.hash in self._weights}
        return sum(sizes.values()) > self.room or sum((sizes | used).values()) <= self.room

    def get(self, hash_: str, size: int, load: Callable[[], W], kept: Collection[str]) -> W:
        """The weights of this hash, loaded if they aren't here.

        Args:
            hash_: of their files.
            size: bytes that they take.
            load: loads them.
            kept: hashes of weights that must stay.
        """
        if hash_ not in self._weights:
            self._make_room(size, kept)
            self._weights[hash_] = load()
        self._weights.move_to_end(hash_)
        return self._weights[hash_]

    def _make_room(self, size: int, kept: Collection[str]) -> None:
        idle: Sequence[str] = [hash_ for hash_ in self._weights if hash_ not in kept]
        leaving = 0
        free = self.room - sum(weights.bytes for weights in self._weights.values())
        while free < size and leaving < len(idle):
            free += self._weights.pop(idle[leaving]).bytes
            leaving += 1
        if leaving:
            release_memory()
