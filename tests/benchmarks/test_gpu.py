"""`make gpu` as far as a machine without a GPU shows it: parts run, are kept, stopped and gone on from."""

from pathlib import Path

import pytest

from benchmarks.contender_processes import SoFar
from benchmarks.gpu import main
from benchmarks.gpu_parts import PARTS, Options, steps_of
from benchmarks.gpu_results import PartReport, StepResult, left_of, together
from benchmarks.results import ALL, ONE, ContenderReport, Figures
from benchmarks.workload import Job
from tests.benchmarks.in_thread import run_in_thread

QUICK = ("--quick", "--device", "cpu", "--threads", "1", "--seconds", "0.01", "--concurrency", "1,2")


def test_parts_are_kept_and_gone_on_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", "swap", *QUICK, "--out", str(tmp_path)], run_in_thread) == 0
    table = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == table.removesuffix("\n")
    memory, swap = (PartReport.read(tmp_path / f"{name}.json") for name in ("memory", "swap"))
    (peaks,) = [result.report.peaks for result in memory.results]
    assert [(peak.what, peak.rows) for peak in peaks] == [("step", 1), ("step", 4), ("step", 8), ("image", 2)]
    assert peaks[0].planned_bytes < peaks[1].planned_bytes < peaks[2].planned_bytes
    assert not any(peak.comparable for peak in peaks)
    (swaps,) = [result.report.swaps for result in swap.results]
    assert swaps is not None
    assert (swaps.wrong, swaps.alone) == (0, 2)
    assert f"0 of {swaps.images}" in table

    def nothing_is_left(_job: Job, _limit_s: float, _so_far: SoFar) -> ContenderReport:
        raise AssertionError("measured again")

    assert main(["swap", *QUICK, "--out", str(tmp_path), "--resume"], nothing_is_left) == 0
    assert PartReport.read(tmp_path / "swap.json") == swap


def test_a_contender_has_a_process_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sd15-engine-compiled", *QUICK, "--out", str(tmp_path), "--limit", "0.3"]) == 1
    (stopped,) = PartReport.read(tmp_path / "sd15-engine-compiled.json").results
    assert stopped.report == ContenderReport(failed="stopped after 0 s")
    assert "engine compile={} (sd15): stopped after" in capfd.readouterr().out


def test_a_part_without_time_says_what_is_missing(tmp_path: Path) -> None:
    assert main(["parity", *QUICK, "--out", str(tmp_path), "--limit", "0"], run_in_thread) == 1
    part = PartReport.read(tmp_path / "parity.json")
    assert (part.results, part.stopped) == ((), "after 0 s; not begun: parity")


def figures(way: str, concurrency: int, images_per_s: float = 1.0) -> Figures:
    return Figures(contender="one", way=way, concurrency=concurrency, images=1, images_per_s=images_per_s)


def test_of_a_step_only_what_is_missing_is_done() -> None:
    (step,) = steps_of("sd15-diffusers-compiled", Options(concurrency=(1, 4, 8)))
    found = ContenderReport(figures=(figures(ONE, 1), figures(ONE, 4), figures(ONE, 8), figures(ALL, 4)))
    assert left_of(step, None) == step
    assert left_of(step, StepResult(step=step, report=found, seconds=1.0)) is None
    stopped = StepResult(step=step, report=found.model_copy(update={"failed": "stopped after 9 s"}), seconds=9.0)
    left = left_of(step, stopped)
    assert left is not None
    assert left.concurrency == (8,)
    rest = ContenderReport(figures=(figures(ONE, 8, 2.0), figures(ALL, 8)))
    whole = together(stopped, rest)
    assert whole.failed is None
    assert [(one.way, one.concurrency, one.images_per_s) for one in whole.figures] == [
        (ONE, 1, 1.0),
        (ONE, 4, 1.0),
        (ONE, 8, 2.0),
        (ALL, 4, 1.0),
        (ALL, 8, 1.0),
    ]


def test_parts_are_of_the_real_architectures_unless_they_are_quick() -> None:
    for part in PARTS:
        whole, quick = steps_of(part, Options()), steps_of(part, Options(quick=True))
        assert whole
        assert quick
        assert all(step.workload.random_weights and step.workload.device == "cuda" for step in whole)
        assert not any(step.workload.random_weights for step in quick)
    sizes = {
        (step.workload.width, step.workload.steps, step.concurrency)
        for part in ("sd15", "sdxl-engine-compiled")
        for step in steps_of(part, Options())
    }
    assert sizes == {(512, 25, (1, 4, 8, 16, 32)), (1024, 20, (1, 4, 8, 16, 32))}
