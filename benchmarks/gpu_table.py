"""The results of `make gpu` as Markdown: where they are from, and a table for each thing that was looked at.

Reads results; measures nothing.
"""

from collections.abc import Iterable, Sequence

from benchmarks.gpu_parts import LEVERS
from benchmarks.gpu_results import PartReport, StepResult
from benchmarks.report import floor_seconds, image_flops
from benchmarks.results import LANES, Figures, ModuleReport
from benchmarks.workload import COMPILED, EngineContender, MemoryPeaks, Workload

_NOTHING = "-"


def markdown(parts: Sequence[PartReport]) -> str:
    """All tables that there are results for."""
    if not parts:
        return "Nothing was measured yet."
    sections = [_heading(parts), _parity(parts)]
    plain = [result for part in parts if not part.part.startswith(LEVERS) for result in part.results]
    sections += [
        _throughput(workload, [result for result in plain if result.step.workload == workload])
        for workload in _workloads(plain)
    ]
    sections += [_levers(part) for part in parts if part.part.startswith(LEVERS)]
    sections += [_memory(plain), _swaps(plain), _open(parts)]
    return "\n\n".join(section for section in sections if section) + "\n"


def _heading(parts: Sequence[PartReport]) -> str:
    lines = []
    for said in dict.fromkeys(_where(part) for part in parts):
        names = ", ".join(part.part for part in parts if _where(part) == said)
        lines.append(f"{said} ({names})." if len(set(map(_where, parts))) > 1 else f"{said}.")
    commands = dict.fromkeys(f"`{part.command}` ({part.started})" for part in parts)
    return "\n".join([*lines, f"By {', '.join(commands)}."])


def _where(part: PartReport) -> str:
    machine = part.machine
    packages = ", ".join(f"{name} {number}" for name, number in part.versions.items())
    device = f"{machine['gpu']}; " if "gpu" in machine else "no GPU; "
    return (
        f"{device}{machine['processor']} ({machine['processors']} processors), {machine['system']}; {packages}, "
        f"Python {machine['python']}; commit {part.commit}"
    )


def _parity(parts: Sequence[PartReport]) -> str:
    rows = []
    lanes = [lane for part in parts for result in part.results for lane in result.report.parity]
    for family, dtype in dict.fromkeys((lane.family, lane.dtype) for lane in lanes):
        of = [lane for lane in lanes if (lane.family, lane.dtype) == (family, dtype)]
        worst = max(of, key=lambda lane: max(lane.alone, lane.together) / lane.limit)
        rows.append(
            [
                family,
                dtype,
                f"{sum(lane.close for lane in of)} of {len(of)}",
                f"{max(worst.alone, worst.together):.1e} ({worst.sampler})",
                f"{worst.limit:.1e}",
                f"{sum(lane.bitwise for lane in of)} of {len(of)}",
            ]
        )
    header = ["family", "type", "like diffusers", "furthest from its limit", "that limit", "bits equal within a bucket"]
    return _section("Likeness, and bits within a bucket", header, rows)


def _workloads(results: Iterable[StepResult]) -> list[Workload]:
    found = []
    for result in results:
        if (result.report.figures or result.report.modules) and result.step.workload not in found:
            found.append(result.step.workload)
    return found


def _throughput(workload: Workload, results: Sequence[StepResult]) -> str:
    modules = next((result.report.modules for result in results if result.report.modules is not None), None)
    figures = [figure for result in results for figure in result.report.figures]
    contenders = list(dict.fromkeys(figure.contender for figure in figures))
    at_once = sorted({figure.concurrency for figure in figures})
    rows = []
    for contender in contenders:
        best = {n: _best(figures, contender, n) for n in at_once}
        cells = [_cell(figure) for figure in best.values()]
        rows.append([contender, *cells, *_shares(workload, modules, [figure for figure in best.values() if figure])])
    rows += [
        [
            f"{engine}: ahead of compiled diffusers",
            *(_ahead(_best(figures, engine, n), _best(figures, COMPILED.name, n)) for n in at_once),
            *[""] * 5,
        ]
        for engine in dict.fromkeys(figure.contender for figure in figures if figure.way == LANES)
    ]
    header = ["images/s, p50", *(f"{n} at once" for n in at_once), "TFLOP/s", "of the floor", "peak GB"]
    header += ["VAE's share", "compiled steps"]
    title = (
        f"{workload.spec.family}, {workload.width} x {workload.height}, {workload.steps} steps of {workload.sampler}"
    )
    said = _floor(workload, modules)
    return _section(f"{title}, guidance {workload.guidance_scale:g}", header, rows, said, _failures(figures))


def _floor(workload: Workload, modules: ModuleReport | None) -> str:
    if modules is None:
        return ""
    flops = image_flops(workload, modules)
    decode = next((t.seconds for t in modules.times if (t.module, t.size) == ("vae decode", 1) and not t.failed), None)
    said = (
        f"On {modules.device} in {modules.dtype}: {flops / 1e12:.3g} TFLOP an image, "
        f"{floor_seconds(flops, modules.matrix_tflops) * 1e3:.0f} ms at the {modules.matrix_tflops:.3g} TFLOP/s of a "
        "matrix product measured there: the floor."
    )
    return said if decode is None else f"{said} One decode alone takes {decode * 1e3:.0f} ms."


def _best(figures: Iterable[Figures], contender: str, concurrency: int) -> Figures | None:
    """Of the ways that a contender was asked in, the one with the most images."""
    asked = (f for f in figures if (f.contender, f.concurrency, f.failed) == (contender, concurrency, None))
    return max(asked, key=lambda figure: figure.images_per_s, default=None)


def _cell(figure: Figures | None) -> str:
    return _NOTHING if figure is None else f"{figure.images_per_s:.2f}, {_seconds(figure.latency_p50_s)}"


def _shares(workload: Workload, modules: ModuleReport | None, figures: Sequence[Figures]) -> list[str]:
    """At the concurrency with the most images: TFLOP/s and share of the floor, peak, VAE, compiled."""
    if not figures:
        return [_NOTHING] * 5
    best = max(figures, key=lambda figure: figure.images_per_s)
    shares = [_NOTHING] * 2
    if modules is not None:
        tflops = best.images_per_s * image_flops(workload, modules) / 1e12
        shares = [f"{tflops:.3g}", f"{tflops / modules.matrix_tflops:.0%}"]
    peak = max(figure.peak_bytes for figure in figures)
    return [*shares, f"{peak / 1e9:.2f}", _share(best.vae_share), _share(best.compiled_share)]


def _ahead(engine: Figures | None, diffusers: Figures | None) -> str:
    if engine is None or diffusers is None:
        return _NOTHING
    ratio = engine.images_per_s / diffusers.images_per_s
    return f"{'yes' if ratio > 1 else '**no**'}, {ratio:.2f} x"


def _levers(part: PartReport) -> str:
    figures = [figure for result in part.results for figure in result.report.figures]
    at_once = sorted({figure.concurrency for figure in figures})
    default = next((r.step.contender.name for r in part.results if not _changes(r)), "")
    rows, failures = [], []
    for result in part.results:
        name, report = result.step.contender.name, result.report
        if report.failed is not None:
            failures.append(f"{name}: {report.failed}")
        if not report.figures:
            continue
        cells = []
        for n in at_once:
            mine, usual = _best(figures, name, n), _best(figures, default, n)
            ratio = "" if mine is None or usual is None else f" ({mine.images_per_s / usual.images_per_s:.2f} x)"
            cells.append(_cell(mine) + ratio)
        found = [figure for figure in report.figures if figure.failed is None]
        rows.append(
            [
                name,
                *cells,
                f"{max(figure.peak_bytes for figure in found) / 1e9:.2f}" if found else _NOTHING,
                _share(found[-1].vae_share) if found else _NOTHING,
            ]
        )
    header = ["images/s, p50 (of the default's images/s)", *(f"{n} at once" for n in at_once), "peak GB", "VAE's share"]
    title = f"Levers, {part.part.removeprefix(LEVERS)}: one setting changed at a time"
    return _section(title, header, rows, "", [*failures, *_failures(figures)])


def _changes(result: StepResult) -> bool:
    return isinstance(result.step.contender, EngineContender) and bool(result.step.contender.settings)


def _memory(results: Iterable[StepResult]) -> str:
    rows, failures = [], []
    for result in results:
        work, report = result.step.workload, result.report
        for peak in report.peaks:
            verdict = _NOTHING
            if peak.comparable:
                verdict = "yes" if peak.within else "**no**"
            rows.append(
                [
                    f"{work.spec.family}, {work.width} x {work.height}, {work.dtype}",
                    result.step.contender.policy if isinstance(result.step.contender, MemoryPeaks) else "",
                    f"{peak.rows} rows" if peak.what == "step" else "an image, decoded",
                    f"{peak.planned_bytes / 1e9:.3f}",
                    f"{peak.measured_bytes / 1e9:.3f}",
                    f"{peak.planned_bytes / peak.measured_bytes:.2f}" if peak.comparable else _NOTHING,
                    verdict,
                ]
            )
        if report.peaks and not all(peak.comparable for peak in report.peaks):
            failures.append(f"{work.spec.family}: measured is the whole process, not the device's tensors alone")
    header = ["", "weights", "batch", "planned GB", "measured GB", "planned of measured", "within 10 %"]
    return _section("Peak memory against the plan, weights included", header, rows, "", failures)


def _swaps(results: Iterable[StepResult]) -> str:
    rows = []
    for result in results:
        swaps = result.report.swaps
        if swaps is not None:
            rows.append(
                [
                    f"{result.step.workload.spec.family}, {result.step.workload.dtype}",
                    f"{swaps.alone_p50_s:.3f} s",
                    f"{swaps.alone_p99_s:.3f} s",
                    f"{swaps.under_load_s:.3f} s",
                    f"{swaps.wrong} of {swaps.images}",
                    f"{swaps.memory_before_mib:.0f} → {swaps.memory_after_mib:.0f} MiB",
                ]
            )
    header = ["", "alone, median", "alone, 99th percentile", "between steps of lanes, mean", "wrong images", "memory"]
    return _section("Changing checkpoints", header, rows)


def _open(parts: Iterable[PartReport]) -> str:
    lines = [f"- {part.part}: {part.stopped}" for part in parts if part.stopped is not None]
    for part in parts:
        if not part.part.startswith(LEVERS):
            failed = [result for result in part.results if result.report.failed is not None]
            lines += [f"- {part.part}, {_name(result)}: {result.report.failed}" for result in failed]
    return "\n".join(["Not measured:", "", *lines]) if lines else ""


def _name(result: StepResult) -> str:
    return f"{result.step.contender.name} ({result.step.workload.spec.family})"


def _failures(figures: Iterable[Figures]) -> list[str]:
    return [f"{f.contender}, {f.way}, {f.concurrency} at once: {f.failed}" for f in figures if f.failed is not None]


def _section(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], said: str = "", notes: Sequence[str] = ()
) -> str:
    if not rows and not notes:
        return ""
    table = [_line(header), _line(["---"] * len(header)), *map(_line, rows)] if rows else []
    blocks = [f"### {title}", said, "\n".join(table), "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(block for block in blocks if block)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _share(share: float | None) -> str:
    return _NOTHING if share is None else f"{share:.0%}"
