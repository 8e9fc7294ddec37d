"""The engine benchmark's report: what was run where, a table of figures, a table of module times, ratios.

Reads results; measures nothing.
"""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from benchmarks.results import Figures, ModuleReport
from benchmarks.text_table import text_table
from benchmarks.workload import Workload


class Report(BaseModel):
    """Everything a run found out; what `--json` writes.

    figures: a tuple for each repeat of the whole run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    started: str
    command: str
    commit: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    workload: Workload
    modules: ModuleReport | None = None
    figures: tuple[tuple[Figures, ...], ...] = ()


def render(report: Report) -> str:
    """The report as text for a terminal."""
    parts = [_heading(report)]
    if report.modules is not None:
        parts.append(_modules(report.modules))
    merged = merge(report.figures)
    if merged:
        parts += [_figures(report, merged), *_ratios(merged)]
    return "\n\n".join(parts)


def merge(repeats: Sequence[Sequence[Figures]]) -> list[Figures]:
    """One line for each contender, way and concurrency: the repeat with the median rate (the lower of two)."""
    found: dict[tuple[int, str, str], list[Figures]] = {}
    for figures in repeats:
        for figure in figures:
            found.setdefault((figure.concurrency, figure.contender, figure.way), []).append(figure)
    ordered = sorted(found.items(), key=lambda item: item[0][0])
    return [sorted(same, key=lambda f: f.images_per_s)[(len(same) - 1) // 2] for _, same in ordered]


def floor_seconds(flops: float, tflops: float) -> float:
    """Seconds that a device of `tflops` TFLOP/s needs for `flops` operations, if it did nothing else."""
    return flops / (tflops * 1e12)


def image_flops(workload: Workload, modules: ModuleReport) -> int:
    """Floating-point operations of one image: all its UNet rows, and the decode."""
    return modules.evaluations * workload.rows * modules.unet_row_flops + modules.vae_decode_flops


def _heading(report: Report) -> str:
    work, machine = report.workload, report.machine
    what = f"random weights of {work.spec.family}" if work.random_weights else work.spec.source
    lines = [
        f"{what}, {work.width}x{work.height}, {work.steps} steps of {work.sampler}, guidance {work.guidance_scale:g}",
        f"{report.started}, commit {report.commit}",
        f"{machine['processor']} ({machine['processors']} processors), {machine['system']}",
        ", ".join(f"{name} {number}" for name, number in report.versions.items()) + f", Python {machine['python']}",
    ]
    if report.modules is not None:
        modules = report.modules
        flops = image_flops(work, modules)
        lines += [
            f"on {modules.device}, {modules.dtype}, {modules.cpu_threads} torch threads",
            f"floor: {modules.unet_row_flops / 1e12:.4g} TFLOP a UNet row, {modules.vae_decode_flops / 1e12:.4g} a "
            f"decode, {flops / 1e12:.4g} an image: {floor_seconds(flops, modules.matrix_tflops) * 1e3:.4g} ms at the "
            f"{modules.matrix_tflops:.3g} TFLOP/s of a matrix product measured here",
        ]
    lines.append("warm-up is excluded everywhere; text is encoded beforehand, for all contenders alike")
    return "\n".join(lines)


def _figures(report: Report, merged: Sequence[Figures]) -> str:
    header = ["at once", "contender", "way", "images/s", "p50 s", "p99 s", "images", "peak GB"]
    header += ["TFLOP/s", "of floor", "rows/step", "padding", "step ms", "VAE"]
    if len(report.figures) > 1:
        header.insert(4, "(range)")
    rows = []
    for figure in merged:
        cells = [str(figure.concurrency), figure.contender, figure.way]
        if figure.failed is not None:
            rows.append(cells + [figure.failed] + [""] * (len(header) - 4))
            continue
        cells.append(f"{figure.images_per_s:.3f}")
        if len(report.figures) > 1:
            cells.append(_range(report.figures, figure))
        cells += [f"{figure.latency_p50_s:.3f}", f"{figure.latency_p99_s:.3f}", str(figure.images)]
        cells.append(f"{figure.peak_bytes / 1e9:.2f}")
        if report.modules is None:
            cells += ["", ""]
        else:
            tflops = figure.images_per_s * image_flops(report.workload, report.modules) / 1e12
            cells += [f"{tflops:.3g}", f"{tflops / report.modules.matrix_tflops:.0%}"]
        cells += [
            _optional(figure.rows_per_step, "{:.1f}"),
            _optional(figure.padding, "{:.0%}"),
            _optional(figure.step_seconds, "{:.1f}", 1e3),
            _optional(figure.vae_share, "{:.0%}"),
        ]
        rows.append(cells)
    return text_table(header, rows)


def _range(repeats: Sequence[Sequence[Figures]], of: Figures) -> str:
    who = (of.contender, of.way, of.concurrency)
    rates = [f.images_per_s for figures in repeats for f in figures if (f.contender, f.way, f.concurrency) == who]
    return f"{min(rates):.3f}-{max(rates):.3f}"


def _modules(modules: ModuleReport) -> str:
    flops = {"unet": modules.unet_row_flops, "vae decode": modules.vae_decode_flops}
    rows = []
    for time in modules.times:
        if time.failed is not None:
            rows.append([time.module, str(time.size), time.failed, "", "", "", ""])
            continue
        tflops = flops[time.module] * time.size / time.seconds / 1e12
        rows.append(
            [
                time.module,
                str(time.size),
                f"{time.seconds * 1e3:.2f}",
                f"{time.seconds * 1e3 / time.size:.2f}",
                f"{tflops:.3g}",
                f"{tflops / modules.matrix_tflops:.0%}",
                f"{time.peak_bytes / 1e9:.2f}",
            ]
        )
    return text_table(["module", "rows or images", "ms", "ms each", "TFLOP/s", "of floor", "peak GB"], rows)


def _ratios(merged: Sequence[Figures]) -> list[str]:
    """The engines beside the best of plain diffusers, at each concurrency."""
    lines = []
    engines = list(dict.fromkeys(f.contender for f in merged if f.way == "lanes"))
    for engine in engines:
        for mine in (f for f in merged if f.contender == engine and f.failed is None):
            others = [f for f in merged if f.way != "lanes" and f.concurrency == mine.concurrency and not f.failed]
            said = []
            for way in dict.fromkeys(f.way for f in others):
                best = max((f for f in others if f.way == way), key=lambda f: f.images_per_s)
                said.append(
                    f"{mine.images_per_s / best.images_per_s:.2f} x the images/s of {best.contender}, {way} "
                    f"(p50 {mine.latency_p50_s / best.latency_p50_s:.2f} x)"
                )
            if said:
                lines.append(f"{engine}, {mine.concurrency} at once: " + "; ".join(said))
    return ["\n".join(lines)] if lines else []


def _optional(value: float | None, form: str, factor: float = 1.0) -> str:
    return "" if value is None else form.format(value * factor)
