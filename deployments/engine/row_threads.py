"""Splits the rows of a forward among the processors of a CPU, each part in a thread of its own.

An operation that OpenMP's threads share lasts as long as the slowest of them, and a UNet step is hundreds of such
operations: whenever another process takes one core for a moment, all threads wait. Parts that meet once a step don't.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")

_LEAST = 4  # rows of a part: below that, the threads of one operation do better
_here = threading.local()


@contextmanager
def computing(rows: slice) -> Iterator[None]:
    """Declare that this thread's forwards within the block compute these rows of a batch."""
    _here.rows = rows
    try:
        yield
    finally:
        del _here.rows


def rows_here() -> slice:
    """The rows that this thread's forward computes, for what hooks add to its layers."""
    rows: slice = _here.rows
    return rows


class RowThreads:
    """As many threads as the device has, each with one OpenMP thread."""

    def __init__(self, threads: int) -> None:
        """`threads` of the device: with one, as for a GPU, nothing is split."""
        self.number = threads
        self._executor = ThreadPoolExecutor(threads, "rows", initializer=_compute_alone)

    def forward(self, part: Callable[[slice], torch.Tensor], rows: int) -> torch.Tensor:
        """The tensors that `part` returns for slices of `rows` rows, concatenated. Raises as `parts` does."""
        parts = self.parts(part, rows)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def parts(self, part: Callable[[slice], T], rows: int) -> list[T]:
        """What `part` returns for slices of `rows` rows, in order. Raises what a part raised, after all have ended.

        The slices depend on the number of rows alone, so that the bits of a row do.
        """

        def compute(start: int) -> T:
            with computing(slice(start, start + size)):
                return part(slice(start, start + size))

        size = self.rows_of_part(rows)
        if size == rows:
            return [compute(0)]
        running = [self._executor.submit(compute, start) for start in range(0, rows, size)]
        wait(running)
        return [each.result() for each in running]

    def rows_of_part(self, rows: int) -> int:
        """The number of rows in each slice of `rows` rows."""
        size = rows // self.number
        return rows if self.number == 1 or rows % self.number or size < _LEAST else size

    def close(self) -> None:
        """End the threads."""
        self._executor.shutdown()


def _compute_alone() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
