"""The parts of a forward: all rows in order, in threads of their own, and errors only when all have ended."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from deployments.engine.row_threads import RowThreads


@pytest.fixture
def row_threads() -> Iterator[RowThreads]:
    made = RowThreads(2)
    yield made
    made.close()


@pytest.mark.parametrize("rows", [1, 2, 6, 7, 8, 16])
def test_all_rows_come_back_in_order(row_threads: RowThreads, rows: int) -> None:
    numbers = torch.arange(rows)
    assert torch.equal(row_threads.forward(lambda part: numbers[part] * 2, rows), numbers * 2)


def test_large_forwards_are_split_among_single_threads(row_threads: RowThreads) -> None:
    seen: dict[str, int] = {}
    both = threading.Barrier(2, timeout=30)

    def part(rows: slice) -> torch.Tensor:
        both.wait()  # passed only by parts that run beside each other
        seen[threading.current_thread().name] = torch.get_num_threads()
        return torch.zeros(rows.stop - rows.start)

    row_threads.forward(part, 8)
    assert list(seen.values()) == [1, 1]
    assert threading.current_thread().name not in seen


@pytest.mark.parametrize(("threads", "rows"), [(1, 16), (2, 4), (3, 16), (8, 16)])
def test_other_forwards_stay_whole(threads: int, rows: int) -> None:
    parts: list[tuple[slice, str]] = []

    def part(of: slice) -> torch.Tensor:
        parts.append((of, threading.current_thread().name))
        return torch.zeros(rows)

    RowThreads(threads).forward(part, rows)
    assert parts == [(slice(0, rows), threading.current_thread().name)]


def test_a_failed_part_is_told_when_the_others_have_ended(row_threads: RowThreads) -> None:
    ended = threading.Event()

    def part(rows: slice) -> torch.Tensor:
        if rows.start == 0:
            raise torch.OutOfMemoryError("of the first part")
        time.sleep(0.05)  # a part that takes longer than the failed one
        ended.set()
        return torch.zeros(4)

    with pytest.raises(torch.OutOfMemoryError, match="of the first part"):
        row_threads.forward(part, 8)
    assert ended.is_set()


def test_closed_threads_end(row_threads: RowThreads) -> None:
    used: list[threading.Thread] = []

    def part(rows: slice) -> torch.Tensor:
        used.append(threading.current_thread())
        return torch.zeros(4)

    row_threads.forward(part, 8)
    row_threads.close()
    assert used
    assert not any(thread.is_alive() for thread in used)
