"""One contender in a process of its own: `python -m benchmarks.contender JOB.json RESULT.json`.

Its own, because OpenMP counts every thread of a process that has computed, and peak memory is a process's. The result
is written each time there is more of it, so that a process which is stopped has left what it had.
"""

import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import diffusers
from pydantic import ValidationError

from benchmarks.diffusers_calls import measure_diffusers
from benchmarks.engine_lanes import measure_engine
from benchmarks.memory_peaks import measure_peaks
from benchmarks.module_times import measure_modules
from benchmarks.parity import parity_of
from benchmarks.prompt_encoding import encode_prompts
from benchmarks.results import ContenderReport, Figures, LaneParity, MemoryPeak
from benchmarks.swap import swaps_of
from benchmarks.workload import (
    DiffusersContender,
    EngineContender,
    Job,
    MemoryPeaks,
    ModuleTimes,
    ParityCheck,
    SwapTimes,
    TextEncoding,
    settings_fault,
)

_LAST_WORDS = 300  # characters of an error that a report repeats


def run_job(job: Job, so_far: Callable[[ContenderReport], object]) -> ContenderReport:
    """Measure what the job's contender is; `so_far` is told each time there is more. An error ends up in the report."""
    report = ContenderReport()
    try:
        for report in _reports(job):
            so_far(report)
    except Exception as error:
        traceback.print_exc()
        report = report.model_copy(update={"failed": _said(error)})
        so_far(report)
    return report


def _reports(job: Job) -> Iterator[ContenderReport]:
    match job.contender:
        case EngineContender() as contender:
            yield from _growing("figures", measure_engine(job, contender))
        case DiffusersContender() as contender:
            yield from _growing("figures", measure_diffusers(job, contender))
        case ModuleTimes() as contender:
            yield ContenderReport(modules=measure_modules(job, contender))
        case ParityCheck() as contender:
            yield from _growing("parity", parity_of(job.workload, contender))
        case MemoryPeaks() as contender:
            yield from _growing("peaks", measure_peaks(job, contender))
        case SwapTimes() as contender:
            yield ContenderReport(swaps=swaps_of(job.workload, contender))
        case TextEncoding(path=path):
            encode_prompts(job.workload.spec, Path(path))
            yield ContenderReport()


def _growing(field: str, found: Iterable[Figures | LaneParity | MemoryPeak]) -> Iterator[ContenderReport]:
    so_far: list[Figures | LaneParity | MemoryPeak] = []
    for one in found:
        so_far.append(one)
        yield ContenderReport.model_validate({field: tuple(so_far)})


def _said(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return settings_fault(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_LAST_WORDS]


def main() -> None:
    """Read the job that the command line names first, write its result to the file named second."""
    diffusers.logging.set_verbosity_error()  # its hints on types and memory formats are not for a benchmark's reader
    job = Job.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    result = Path(sys.argv[2])

    def write(report: ContenderReport) -> None:
        unfinished = result.with_suffix(".unfinished")
        unfinished.write_text(report.model_dump_json(), encoding="utf-8")
        unfinished.replace(result)

    run_job(job, write)


if __name__ == "__main__":
    main()
