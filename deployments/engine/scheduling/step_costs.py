"""What steps cost by shape and bucket, as measured, and so how large a batch pays.

A device that waits for its host or for its weights takes 16 rows in hardly more time than 8. One that is bound by
arithmetic takes twice the time: padding 10 rows to 16 throws a third of it away, and a full batch of 16 serves no more
images a second than two of 8, while each of them waits for all. Which of the two a device is at a shape isn't assumed
but measured.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from deployments.engine.batch import bucket_for

Shape = TypeVar("Shape", bound=Hashable)

_SAMPLES = 3  # a cost is trusted from so many steps on: the first ones also warm the device up
_REMEMBERED = 8
_LEAST = 2  # rows of one lane with guidance
_SHAPES = 256  # shapes and buckets whose costs are kept, the latest ones
_WORTH = 1.1  # a batch of twice the rows must serve so much more a second: each of its lanes waits for all of them
_LOOK_AGAIN = 64  # steps that were cut before one is not, to see whether its cost is still the same


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

    def row_seconds(self, shape: Shape) -> float:
        """What a row takes at best, as far as it is known; 0 before the first step."""
        known = (min(samples) / bucket for (of, bucket), samples in self._seconds.items() if of == shape)
        return min(known, default=0.0)

    def worthwhile(self, shape: Shape, rows: int) -> int:
        """The bucket to run when `rows` rows wait: the one that pads them all, or half of it, or half of that.

        What isn't known yet is tried, the larger bucket first.
        """
        bucket = bucket_for(rows)
        while bucket > _LEAST and self._cutting_pays(shape, min(rows, bucket), bucket):
            bucket //= 2
        return bucket

    def _cutting_pays(self, shape: Shape, rows: int, bucket: int) -> bool:
        """`rows` rows in their bucket serve hardly more a second than half the bucket, full."""
        whole, half = self._cost(shape, bucket), self._cost(shape, bucket // 2)
        if whole is None or half is None:
            return whole is not None
        if rows / whole > _WORTH * (bucket // 2) / half:
            return False
        cuts = self._cuts[shape, bucket] = (self._cuts.get((shape, bucket), 0) + 1) % _LOOK_AGAIN
        return cuts != 0

    def _cost(self, shape: Shape, bucket: int) -> float | None:
        samples = self._seconds.get((shape, bucket))
        return min(samples) if samples is not None and len(samples) >= _SAMPLES else None
