"""The tables of `make gpu` say what was measured, and what wasn't."""

from benchmarks.gpu_parts import COMPILED, PLAIN, Options, steps_of
from benchmarks.gpu_results import PartReport, StepResult
from benchmarks.gpu_table import markdown
from benchmarks.results import (
    ALL,
    LANES,
    ONE,
    ContenderReport,
    Figures,
    LaneParity,
    MemoryPeak,
    ModuleTime,
    SwapFigures,
)
from tests.benchmarks.measured_modules import module_report

MODULES = module_report(ModuleTime(module="vae decode", size=1, seconds=0.012, repeats=9))


def part(name: str, *reports: ContenderReport, stopped: str | None = None) -> PartReport:
    steps = steps_of(name, Options(concurrency=(1, 8)))
    return PartReport(
        part=name,
        started="2026-01-01T00:00:00+00:00",
        command="python -m benchmarks.gpu",
        commit="abc",
        machine={"processor": "A", "processors": 16, "system": "Linux", "python": "3.12", "gpu": "a GPU, 80 GiB"},
        versions={"torch": "2.13.0"},
        results=tuple(
            StepResult(step=step, report=report, seconds=1.0) for step, report in zip(steps, reports, strict=False)
        ),
        stopped=stopped,
    )


def figures(contender: str, way: str, concurrency: int, images_per_s: float, **changes: float | str) -> Figures:
    found = Figures(
        contender=contender,
        way=way,
        concurrency=concurrency,
        images=9,
        images_per_s=images_per_s,
        latency_p50_s=concurrency / images_per_s,
        latency_p99_s=concurrency / images_per_s,
        peak_bytes=3_500_000_000,
    )
    return found.model_copy(update=changes)


def row(table: str, beginning: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {beginning} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_throughput_of_several_parts_is_one_table() -> None:
    engine = (figures("engine", LANES, 1, 8.0, vae_share=0.2), figures("engine", LANES, 8, 10.0, vae_share=0.25))
    plain = (figures(PLAIN.name, ONE, 1, 2.0),)
    compiled = (
        figures(COMPILED.name, ONE, 1, 9.0),
        figures(COMPILED.name, ONE, 8, 9.0),
        figures(COMPILED.name, ALL, 8, 7.5),
    )
    table = markdown(
        [
            part(
                "sd15",
                ContenderReport(modules=MODULES),
                ContenderReport(figures=engine),
                ContenderReport(figures=plain),
            ),
            part("sd15-diffusers-compiled", ContenderReport(figures=compiled, failed="stopped after 570 s")),
        ]
    )
    assert "a GPU, 80 GiB; A (16 processors)" in table
    assert table.count("### sd15, 512 x 512, 25 steps of euler, guidance 7.5") == 1
    # 42.7 TFLOP an image: 10 a second are 427 TFLOP/s of 790
    assert "42.7 TFLOP an image, 54 ms at the 790 TFLOP/s" in table
    assert "One decode alone takes 12 ms." in table
    assert row(table, "engine") == ["engine", "8.00, 125 ms", "10.00, 800 ms", "427", "54%", "3.50", "25%", "-"]
    assert row(table, "diffusers") == ["diffusers", "2.00, 500 ms", "-", "85.3", "11%", "3.50", "-", "-"]
    assert row(table, "engine: ahead of compiled diffusers")[1:3] == ["**no**, 0.89 x", "yes, 1.11 x"]
    assert "- sd15-diffusers-compiled, diffusers compiled (sd15): stopped after 570 s" in table


def test_levers_are_beside_the_default() -> None:
    changed = figures("engine channels_last=false", LANES, 1, 4.0)
    table = markdown(
        [
            part(
                "levers-sdxl",
                ContenderReport(figures=(figures("engine", LANES, 1, 5.0, vae_share=0.1),)),
                ContenderReport(failed="vae.dtype: Extra inputs are not permitted"),
                ContenderReport(
                    figures=(
                        changed.model_copy(update={"contender": "engine dtype=float16,vae.dtype=bfloat16"}),
                        changed.model_copy(
                            update={
                                "contender": "engine dtype=float16,vae.dtype=bfloat16",
                                "concurrency": 8,
                                "failed": "no memory",
                            }
                        ),
                    )
                ),
                stopped="after 570 s; not begun: engine max_rows=32",
            )
        ]
    )
    assert row(table, "engine") == ["engine", "5.00, 200 ms (1.00 x)", "-", "3.50", "10%"]
    assert row(table, "engine dtype=float16,vae.dtype=bfloat16")[1] == "4.00, 250 ms (0.80 x)"
    assert "- engine dtype=float16: vae.dtype: Extra inputs are not permitted" in table
    assert "- engine dtype=float16,vae.dtype=bfloat16, lanes, 8 at once: no memory" in table
    assert "- levers-sdxl: after 570 s; not begun: engine max_rows=32" in table


def test_likeness_peaks_and_swaps() -> None:
    lane = LaneParity(
        family="sd15",
        dtype="float16",
        sampler="heun",
        steps=4,
        guidance_scale=1.0,
        alone=1e-3,
        together=2e-3,
        plain=1e-3,
        bitwise=True,
    )
    apart = lane.model_copy(update={"sampler": "lcm", "together": 1e-2, "bitwise": False})
    peak = MemoryPeak(what="step", rows=4, planned_bytes=3_200_000_000, measured_bytes=3_000_000_000, comparable=True)
    wide = peak.model_copy(update={"what": "image", "rows": 2, "planned_bytes": 3_600_000_000})
    swaps = SwapFigures(
        checkpoints=("a", "b"),
        alone=9,
        alone_p50_s=0.15,
        alone_p99_s=0.2,
        under_load=9,
        under_load_s=0.16,
        in_place=17,
        images=20,
        wrong=0,
        memory_before_mib=100.0,
        memory_after_mib=101.0,
    )
    table = markdown(
        [
            part("parity", ContenderReport(parity=(lane, apart))),
            part("memory", ContenderReport(peaks=(peak, wide))),
            part("swap", ContenderReport(swaps=swaps)),
        ]
    )
    assert row(table, "sd15")[1:] == ["float16", "1 of 2", "1.0e-02 (lcm)", "5.0e-03", "1 of 2"]
    assert "| resident | 4 rows | 3.200 | 3.000 | 1.07 | yes |" in table
    assert "| resident | an image, decoded | 3.600 | 3.000 | 1.20 | **no** |" in table
    assert "| sd15, float16 | 0.150 s | 0.200 s | 0.160 s | 0 of 20 | 100 → 101 MiB |" in table


def test_nothing_is_nothing() -> None:
    assert markdown([]) == "Nothing was measured yet."
