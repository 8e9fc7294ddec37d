"""Whether what a process uses grows: a straight line through its samples, judged by what it may have grown at most.

The line's slope is uncertain, and the more so because memory is no fair dice: a sample is much like the one before it.
What counts against a process is the upper end of what its samples allow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import linear_regression, median

# A process' resident memory may have grown by so much over the time it was watched: allocators' grain, caches.
RSS_MIB, RSS_SHARE = 16.0, 0.03
# Descriptors and threads in the end above those at first: connections, pools' threads.
COUNT = 8

_SURE = 2.0  # standard errors


@dataclass(frozen=True, slots=True)
class Growth:
    """first, last: the medians of the first and the last fifth. line: what the line gained over all samples.

    error: the line's standard error, in the same unit.
    """

    first: float
    last: float
    line: float
    error: float

    @property
    def most(self) -> float:
        """What it may have grown at most."""
        return self.line + _SURE * self.error


def growth(times: Sequence[float], values: Sequence[float]) -> Growth:
    """Of samples in the order of time, ten at least."""
    slope, start = linear_regression(times, values)
    off = [value - (start + slope * at) for at, value in zip(times, values, strict=True)]
    squares = sum(one * one for one in off)
    alike = sum(one * other for one, other in pairwise(off)) / squares if squares else 0.0
    # so many samples tell what these tell, if those didn't resemble one another
    telling = max(3.0, len(off) * (1 - max(alike, 0.0)) / (1 + max(alike, 0.0)))
    middle = sum(times) / len(times)
    spread = sum((at - middle) ** 2 for at in times) / len(times)
    error = (squares / len(off) / (telling - 2) / spread) ** 0.5
    fifth = max(1, len(values) // 5)
    span = times[-1] - times[0]
    return Growth(median(values[:fifth]), median(values[-fifth:]), slope * span, error * span)


def rss_bound(growth: Growth) -> float:
    """MiB that a process of this size may have grown by."""
    return max(RSS_MIB, RSS_SHARE * growth.first)
