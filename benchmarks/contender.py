"""One contender in a process of its own: `python -m benchmarks.contender JOB.json` writes the job's result file.

Its own, because OpenMP counts every thread of a process that has computed, and peak memory is a process's.
"""

import sys
from pathlib import Path

import diffusers

from benchmarks.diffusers_calls import measure_diffusers
from benchmarks.engine_lanes import measure_engine
from benchmarks.module_times import measure_modules
from benchmarks.prompt_encoding import encode_prompts
from benchmarks.results import ContenderReport
from benchmarks.workload import DiffusersContender, EngineContender, Job, ModuleTimes, TextEncoding


def run_job(job: Job) -> ContenderReport:
    """Measure what the job's contender is."""
    match job.contender:
        case EngineContender() as contender:
            return ContenderReport(figures=tuple(measure_engine(job, contender)))
        case DiffusersContender() as contender:
            return ContenderReport(figures=tuple(measure_diffusers(job, contender)))
        case ModuleTimes() as contender:
            return ContenderReport(modules=measure_modules(job, contender))
        case TextEncoding(path=path):
            encode_prompts(job.workload.spec, Path(path))
            return ContenderReport()


def main() -> None:
    """Read the job named on the command line, write its result."""
    diffusers.logging.set_verbosity_error()  # its hints on types and memory formats are not for a benchmark's reader
    job = Job.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(job.result).write_text(run_job(job).model_dump_json(), encoding="utf-8")


if __name__ == "__main__":
    main()
