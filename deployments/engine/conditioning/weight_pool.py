"""Weights of one kind of conditioning on the device: which stay, and which leave for others."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Generic, TypeVar

from deployments.engine.conditioning.protocol import DeviceWeights
from deployments.engine.device import release_memory

W = TypeVar("W", bound=DeviceWeights)


class WeightPool(Generic[W]):
    """The least recently used leaves first, never one that lanes use. In the device's thread."""

    def __init__(self, room: int) -> None:
        """room: bytes of the device, for all of them."""
        self.room = room
        self._weights: OrderedDict[str, W] = OrderedDict()  # by hash, least recently used first

    def has_room(self, sizes: dict[str, int], in_use: Collection[DeviceWeights]) -> bool:
        """Whether weights can be here beside those that lanes use. Also true of what never can.

        Args:
            sizes: bytes by hash.
            in_use: also of other kinds, which have rooms of their own.
        """
        used = {weights.hash: weights.bytes for weights in in_use if weights.hash in self._weights}
        return sum(sizes.values()) > self.room or sum((sizes | used).values()) <= self.room

    def get(self, hash_: str, size: int, load: Callable[[], W], kept: Collection[str]) -> W:
        """The weights of this hash, loaded if they aren't here.

        Args:
            size: bytes that they take.
            kept: hashes of those that stay.
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
