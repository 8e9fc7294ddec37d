"""The arithmetic of the engine benchmark's report, and that it says what happened."""

import pytest

from benchmarks.diffusers_calls import queue_latencies
from benchmarks.report import Report, floor_seconds, image_flops, merge, render
from benchmarks.results import Figures, ModuleTime, percentiles
from benchmarks.text_table import text_table
from benchmarks.workload import Workload
from deployments.engine.checkpoints.spec import CheckpointSpec
from tests.benchmarks.measured_modules import module_report


def workload(guidance_scale: float = 7.5) -> Workload:
    return Workload(
        spec=CheckpointSpec(family="sd15", source="random/sd15"),
        random_weights=True,
        width=512,
        height=512,
        steps=25,
        sampler="euler",
        guidance_scale=guidance_scale,
        device="auto",
        dtype="float16",
        seconds=1.0,
    )


MODULES = module_report(
    ModuleTime(module="unet", size=2, seconds=0.010, repeats=9),
    ModuleTime(module="vae decode", size=4, failed="out of device memory"),
)


def figures(contender: str, way: str, concurrency: int, images_per_s: float) -> Figures:
    return Figures(
        contender=contender,
        way=way,
        concurrency=concurrency,
        images=12,
        images_per_s=images_per_s,
        latency_p50_s=concurrency / images_per_s,
        latency_p99_s=concurrency / images_per_s,
    )


def report(*repeats: tuple[Figures, ...]) -> Report:
    return Report(
        started="2026-01-01T00:00:00+00:00",
        command="python -m benchmarks.engine",
        commit="abc",
        machine={"processor": "a processor", "processors": 2, "system": "Linux", "python": "3.11"},
        versions={"torch": "2"},
        workload=workload(),
        modules=MODULES,
        figures=repeats,
    )


def test_the_floor_of_sd15_on_an_h200() -> None:
    """25 steps with guidance at 790 TFLOP/s: 54 ms."""
    flops = image_flops(workload(), MODULES)
    assert flops == 50 * 803_000_000_000 + 2_515_000_000_000
    assert floor_seconds(flops, 790.0) == pytest.approx(0.054, abs=0.0005)


def test_without_guidance_an_image_has_one_row_a_step() -> None:
    assert image_flops(workload(guidance_scale=1.0), MODULES) == 25 * 803_000_000_000 + 2_515_000_000_000


def test_the_latency_in_a_queue_is_that_of_everybody_in_front() -> None:
    assert queue_latencies([1.0, 2.0, 3.0], 1) == [1.0, 2.0, 3.0]
    assert queue_latencies([1.0, 2.0, 3.0], 2) == [3.0, 5.0, 4.0]
    assert queue_latencies([2.0], 16) == [32.0]


def test_percentiles() -> None:
    assert percentiles([1.0]) == (1.0, 1.0)
    p50, p99 = percentiles([float(value) for value in range(101)])
    assert (p50, p99) == (50.0, 99.0)


def test_repeats_are_merged_by_their_median_rate() -> None:
    repeats = [(figures("engine", "lanes", 4, rate),) for rate in (3.0, 1.0, 2.0)]
    assert [merged.images_per_s for merged in merge(repeats)] == [2.0]
    assert "1.000-3.000" in render(report(*repeats))


def test_the_report_says_shares_ratios_and_failures() -> None:
    text = render(
        report(
            (
                figures("engine", "lanes", 4, 6.0),
                figures("diffusers", "one call at a time", 4, 4.0),
                Figures(contender="diffusers", way="one call for all", concurrency=4, failed="out of device memory"),
            )
        )
    )
    # 10 ms for two rows of 0.803 TFLOP are 160.6 TFLOP/s, a fifth of 790
    assert "161" in text
    assert "20%" in text
    assert "engine, 4 at once: 1.50 x the images/s of diffusers, one call at a time (p50 0.67 x)" in text
    assert text.count("out of device memory") == 2
    assert "warm-up is excluded" in text


def test_tables_are_aligned() -> None:
    assert text_table(["a", "n"], [["xx", "1"], ["y", "10"]]) == "a    n\n--  --\nxx   1\ny   10"
