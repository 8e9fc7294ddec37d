import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from benchmarks.peers.processes import busiest, processor_seconds, shared_fairly_bytes, spent_s

WORKER = "while True: pass"
SLEEPER = "import time; time.sleep(600)"


@pytest.fixture
def processes() -> Iterator[list[psutil.Process]]:
    started = [subprocess.Popen([sys.executable, "-c", code]) for code in (SLEEPER, WORKER)]
    yield [psutil.Process(process.pid) for process in started]
    for process in started:
        process.kill()
        process.wait()


def test_who_works_is_seen(processes: list[psutil.Process]) -> None:
    sleeper, worker = processes
    before = processor_seconds(processes)
    while worker.cpu_times().user < before[worker] + 0.3:
        pass
    after = processor_seconds(processes)
    assert busiest(before, after) == worker
    assert spent_s(before, after) >= 0.3
    assert spent_s({}, after) == pytest.approx(sum(after.values()))
    assert sleeper in after


def test_memory_is_of_all_of_them(processes: list[psutil.Process]) -> None:
    assert shared_fairly_bytes(processes) > shared_fairly_bytes(processes[:1]) > 0


def test_who_has_ended_is_left_out(processes: list[psutil.Process]) -> None:
    processes[1].kill()
    processes[1].wait()
    assert list(processor_seconds(processes)) == processes[:1]
    assert shared_fairly_bytes(processes[1:]) == 0
