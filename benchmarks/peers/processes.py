"""What a server's processes take: memory, processor time, and which of them works."""

import contextlib
from collections.abc import Iterable

import psutil


def shared_fairly_bytes(processes: Iterable[psutil.Process]) -> int:
    """PSS of the processes together: a page that n of them share counts for each as an n-th."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total


def processor_seconds(processes: Iterable[psutil.Process]) -> dict[psutil.Process, float]:
    """Processor time of each so far, those that have ended left out."""
    seconds: dict[psutil.Process, float] = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds[process] = times.user + times.system
    return seconds


def spent_s(before: dict[psutil.Process, float], after: dict[psutil.Process, float]) -> float:
    """Processor seconds from the one moment to the other, of new processes all that they have taken."""
    return sum(seconds - before.get(process, 0.0) for process, seconds in after.items())


def busiest(before: dict[psutil.Process, float], after: dict[psutil.Process, float]) -> psutil.Process:
    """The process that has computed most from the one moment to the other. Raises ValueError if there is none."""
    return max(after, key=lambda process: after[process] - before.get(process, 0.0))
