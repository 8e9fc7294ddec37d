"""What steps cost by shape and bucket, as measured, and so whether padding a batch pays.

A device that waits for its host or for its weights takes 16 rows in hardly more time than 8; one that is bound by
arithmetic takes twice the time, and padding 10 rows to 16 throws a third of it away. Which of the two a device is at
a shape isn't assumed but measured. Knows rows and seconds; nothing of lanes, torch or clocks.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Shape = TypeVar("Shape", bound=Hashable)

_SAMPLES = 3  # a cost is trusted from so many steps on: the first ones also warm the device up
_REMEMBERED = 8
_SHAPES = 256  # shapes and buckets whose costs are kept, the latest ones
_LOOK_AGAIN = 64  # steps that were cut before one is padded again, to see whether its cost is still the same


class StepCosts(Generic[Shape]):
    """Seconds of a step by (shape, bucket): the least of the last few, which waits of the machine disturb least."""

    def __init__(self) -> None:
        self._seconds: OrderedDict[tuple[Shape, int], deque[float]] = OrderedDict()
        self._cuts: dict[tuple[Shape, int], int] = {}

    def record(self, shape: Shape, bucket: int, seconds: float) -> None:
        """A step of this bucket took so long."""
        samples = self._seconds.setdefault((shape, bucket), deque(maxlen=_REMEMBERED))
        self._seconds.move_to_end((shape, bucket))
        samples.append(seconds)
        while len(self._seconds) > _SHAPES:
            oldest, _ = self._seconds.popitem(last=False)
            self._cuts.pop(oldest, None)

    def cutting_pays(self, shape: Shape, rows: int, bucket: int) -> bool:
        """Half the bucket, full, serves more rows a second than `rows` padded to the whole of it.

        What isn't known yet is tried: first padding, then cutting.
        """
        padded, half = self._cost(shape, bucket), self._cost(shape, bucket // 2)
        if padded is None or half is None:
            return padded is not None
        if rows / padded >= bucket // 2 / half:
            return False
        cuts = self._cuts[shape, bucket] = (self._cuts.get((shape, bucket), 0) + 1) % _LOOK_AGAIN
        return cuts != 0

    def _cost(self, shape: Shape, bucket: int) -> float | None:
        samples = self._seconds.get((shape, bucket))
        return min(samples) if samples is not None and len(samples) >= _SAMPLES else None
