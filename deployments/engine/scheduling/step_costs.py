"""The measured seconds of a step by shape and bucket, and the batch size that they make worthwhile.

A device that waits for its host or for its weights takes 16 rows in hardly more time than 8. One that is bound by
arithmetic takes twice the time: padding 10 rows to 16 wastes a third of it, and a batch of 16 serves no more images a
second than two of 8, while each image waits for all. Which of the two holds for a shape is measured.
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
_WORTH = 1.1  # twice the rows must serve so many times the images a second, as each lane waits for all of them
_SLOWED = 1.1  # a step that urgent lanes share with others may take so many times what it takes without them
_LOOK_AGAIN = 64  # after so many cut steps one isn't cut, to measure its cost again


class StepCosts(Generic[Shape]):
    """Seconds of a step by (shape, bucket): the least of the last few, which other load disturbs least."""

    def __init__(self) -> None:
        self._seconds: OrderedDict[tuple[Shape, int], deque[float]] = OrderedDict()
        self._cuts: dict[tuple[Shape, int], int] = {}

    def record(self, shape: Shape, bucket: int, seconds: float) -> None:
        """Record the seconds of a step with this bucket."""
        samples = self._seconds.setdefault((shape, bucket), deque(maxlen=_REMEMBERED))
        self._seconds.move_to_end((shape, bucket))
        samples.append(seconds)
        while len(self._seconds) > _SHAPES:
            oldest, _ = self._seconds.popitem(last=False)
            self._cuts.pop(oldest, None)

    def row_seconds(self, shape: Shape) -> float:
        """The least seconds of a row at any bucket so far; 0 before the first step."""
        known = (min(samples) / bucket for (of, bucket), samples in self._seconds.items() if of == shape)
        return min(known, default=0.0)

    def worthwhile(self, shape: Shape, rows: int) -> int:
        """The bucket to run when `rows` rows wait: the one that holds them all, or half of it, or half of that.

        Buckets of unknown cost are tried, the larger first.
        """
        bucket = bucket_for(rows)
        while bucket > _LEAST and self._cutting_pays(shape, min(rows, bucket), bucket):
            bucket //= 2
        return bucket

    def unslowed(self, shape: Shape, rows: int) -> int:
        """The largest bucket whose steps take hardly longer than those of the bucket that holds `rows` rows.

        A larger bucket of unknown cost is tried once that one's is known.
        """
        bucket = bucket_for(rows)
        alone = self._cost(shape, bucket)
        if alone is None:
            return bucket
        while (larger := self._cost(shape, 2 * bucket)) is not None and larger <= _SLOWED * alone:
            bucket *= 2
        return 2 * bucket if larger is None else bucket

    def _cutting_pays(self, shape: Shape, rows: int, bucket: int) -> bool:
        """Whether `rows` rows in their bucket serve hardly more a second than a full bucket of half the size."""
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
