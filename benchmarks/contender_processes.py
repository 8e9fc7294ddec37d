"""Runs a contender in a process of its own, for so many seconds at most, and reads what it reports meanwhile.

No torch here. Knows nothing of what is measured.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.results import ContenderReport
from benchmarks.workload import Job

SoFar = Callable[[ContenderReport], object]
Run = Callable[[Job, float, SoFar], ContenderReport]

_LOOK_S = 1.0  # how often it is looked whether there is more to report
_GRACE_S = 5.0  # between asking a process to end and ending it
# what libraries say while they are imported isn't about the benchmark
_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
# contenders find this checkout from any folder
_HERE = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")])}


def run_in_process(job: Job, limit_s: float, so_far: SoFar) -> ContenderReport:
    """What the contender reports. Stopped after `limit_s` or ended early, it is what it had by then, and why.

    so_far: told each time there is more.
    """
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        told, result = Path(folder) / "job.json", Path(folder) / "result.json"
        told.write_text(job.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.contender", str(told), str(result)]
        # a group of its own, in which its own processes are stopped with it
        process = subprocess.Popen(command, env=os.environ | _QUIET | _HERE, start_new_session=True)
        report, until = ContenderReport(), time.monotonic() + limit_s
        try:
            while process.poll() is None and time.monotonic() < until:
                try:
                    process.wait(min(_LOOK_S, max(0.0, until - time.monotonic())))
                except subprocess.TimeoutExpired:
                    newer = _read(result)
                    if newer != report:
                        report = newer
                        so_far(report)
        finally:
            status = process.poll()
            _end(process)
        report = _read(result)
    if report.failed is None and status != 0:
        why = f"stopped after {limit_s:.0f} s" if status is None else f"its process ended with status {status}"
        report = report.model_copy(update={"failed": why})
    so_far(report)
    return report


def _read(result: Path) -> ContenderReport:
    if not result.is_file():
        return ContenderReport()
    return ContenderReport.model_validate_json(result.read_text(encoding="utf-8"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process, and what it started and left behind."""
    try:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
