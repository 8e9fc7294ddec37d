"""Everything that wants a GPU, in parts of ten minutes at most: `make gpu`, which needs no Ray.

    python -m benchmarks.gpu                       every part
    python -m benchmarks.gpu parity sd15 --resume  these, without what their files have already
    python -m benchmarks.gpu --table               the table of what there is, on any machine

Each part's results are a JSON file in the folder, written after each step; a table in Markdown is made of all files
there. A part that runs over is stopped and has what it had by then; the next one goes on. Every contender runs in a
process of its own. The exit status says whether every part is whole, images were like diffusers' and swaps right;
a lever that this version or machine doesn't have is told in the table.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from pydantic import ValidationError

from benchmarks.contender_processes import Run, run_in_process
from benchmarks.gpu_parts import LEVERS, PARTS, Options, Step, steps_of
from benchmarks.gpu_results import PartReport, StepResult, left_of, together
from benchmarks.gpu_table import markdown
from benchmarks.machine import commit, machine, versions
from benchmarks.results import ContenderReport
from benchmarks.workload import EngineContender, Job, engine_settings, settings_fault
from deployments.engine.config import DeviceName

_TABLE = "table.md"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    defaults = Options()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without one")
    parser.add_argument("--device", choices=get_args(DeviceName), default=defaults.device)
    parser.add_argument("--threads", type=int, default=defaults.threads, help="torch threads; 0: one a processor")
    parser.add_argument("--concurrency", default=",".join(map(str, defaults.concurrency)), help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=defaults.seconds, help="for each figure (default: %(default)s)"
    )
    parser.add_argument("--limit", type=float, default=570.0, help="seconds for each part (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="keep what the folder has of these parts")
    parser.add_argument("--quick", action="store_true", help="demo models, small: whether it runs, not how fast")
    parser.add_argument("--table", action="store_true", help="measure nothing, print the table of the folder")
    options = parser.parse_args(arguments)
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return options


def main(arguments: Sequence[str] | None = None, run: Run = run_in_process) -> int:
    """Run the parts, write and print the table."""
    options = parse(arguments)
    folder: Path = options.out
    if not options.table:
        chosen = Options(
            device=options.device,
            threads=options.threads,
            concurrency=tuple(int(n) for n in options.concurrency.split(",")),
            seconds=options.seconds,
            quick=options.quick,
        )
        folder.mkdir(parents=True, exist_ok=True)
        command = " ".join(["python -m benchmarks.gpu", *(sys.argv[1:] if arguments is None else arguments)])
        for name in options.parts or PARTS:
            path = folder / f"{name}.json"
            part = _new_part(name, command)
            if options.resume and path.is_file():
                part = _gone_on_from(PartReport.read(path), part)
            _run_part(part, steps_of(name, chosen), path, options.limit, run)
    parts = [PartReport.read(path) for name in PARTS if (path := folder / f"{name}.json").is_file()]
    table = markdown(parts)
    if parts and not options.table:
        (folder / _TABLE).write_text(table, encoding="utf-8")
    print(table)
    return 0 if parts and all(map(_passed, parts)) else 1


def _new_part(name: str, command: str) -> PartReport:
    return PartReport(
        part=name,
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        commit=commit(),
        machine=machine(),
        versions=versions(),
    )


def _gone_on_from(earlier: PartReport, part: PartReport) -> PartReport:
    """The earlier report, unless it is of another machine or of other versions."""
    if (earlier.commit, earlier.machine, earlier.versions) != (part.commit, part.machine, part.versions):
        print(
            f"{part.part}: what there is was measured elsewhere, or of something else; measured anew", file=sys.stderr
        )
        return part
    return earlier.model_copy(update={"stopped": None})


def _run_part(part: PartReport, steps: Sequence[Step], path: Path, limit_s: float, run: Run) -> None:
    """Step by step into the part's file, until the time is over."""
    until = time.monotonic() + limit_s
    for index, step in enumerate(steps):
        earlier = part.of(step)
        left = left_of(step, earlier)
        if left is None:
            continue
        began = time.monotonic()
        if began >= until:
            missing = ", ".join(other.contender.name for other in steps[index:] if part.of(other) is None)
            part = part.model_copy(update={"stopped": f"after {limit_s:.0f} s; not begun: {missing}"})
            break
        print(f"{part.part}: {step.contender.name} ({step.workload.spec.family})", file=sys.stderr)

        def keep(found: ContenderReport, step: Step = step, earlier: StepResult | None = earlier) -> None:
            nonlocal part
            seconds = time.monotonic() - began  # noqa: B023  # told while the step runs, never later
            part = part.having(StepResult(step=step, report=together(earlier, found), seconds=round(seconds, 1)))
            part.write(path)

        fault = _fault(left)
        if fault is not None:
            keep(ContenderReport(failed=fault))
        else:
            job = Job(workload=left.workload, contender=left.contender, concurrency=left.concurrency)
            keep(run(job, until - began, keep))
    part.write(path)


def _fault(step: Step) -> str | None:
    """Why this version's engine doesn't take a step's settings, which needn't be found out in a process."""
    if isinstance(step.contender, EngineContender):
        try:
            engine_settings(step.workload, step.contender.settings)
        except ValidationError as error:
            return settings_fault(error)
    return None


def _passed(part: PartReport) -> bool:
    """Whole, and right where that is what it looks at."""
    if part.stopped is not None:
        return False
    for result in part.results:
        report = result.report
        if report.failed is not None and not part.part.startswith(LEVERS):
            return False
        if not all(lane.passed for lane in report.parity) or (report.swaps is not None and report.swaps.wrong):
            return False
    return True


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the process at work is ended, too
    sys.exit(main())
