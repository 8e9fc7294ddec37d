"""The service benchmark's report for people: tables for a terminal and for Markdown, and a plot. Measures nothing."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.service_figures import LoadFigures, ServiceFigures, ServiceReport

Cells = Sequence[str]


def tables(report: ServiceReport) -> list[tuple[str, Cells, list[Cells]]]:
    """Title, header and rows of each table."""
    services = report.services
    found: list[tuple[str, Cells, list[Cells]]] = []
    lone: list[Cells] = []
    if report.bare_p50_s is not None:
        lone.append(("bare pipeline call, nothing else running", _seconds(report.bare_p50_s), "", "", "", ""))
    for one in services:
        turns = _beside(one.lone.service_s, one.lone.bare_in_turns_s)
        lone.append((one.name, _seconds(one.lone.service_s), *turns, *_beside(one.lone.service_s, one.bare_around_s)))
    header: Cells = ("", "p50 s", "bare call in turns s", "of that", "bare call before and after s", "of that")
    found.append(("A lone request", header, lone))

    header = ("load", "service", "images/s", "p50 s", "p99 s", "goodput/s", "in time", "blocked", "refused", "failed")
    rows: list[Cells] = []
    for concurrency in services[0].closed:
        rows += [
            _load_row(f"{concurrency} at a time", one.name, one.closed[concurrency])
            for one in services
            if concurrency in one.closed
        ]
    found.append(("Closed loop", header, rows))
    rows = []
    for index, offered in enumerate(services[0].opened):
        label = f"{offered.offered_per_s:.2f}/s offered"
        rows += [_load_row(label, one.name, one.opened[index]) for one in services if index < len(one.opened)]
    if rows:
        found.append((f"Open loop, Poisson; in time: within {report.objective_s:.2f} s", header, rows))
    rows = [
        (one.name, _seconds(o.short_s), _seconds(o.alone_s), _seconds(o.waits_s), _seconds(o.long_s), str(o.repeats))
        for one in services
        if (o := one.overtaking) is not None
    ]
    if rows:
        header = ("service", "short job s", "alone s", "waits s", "long jobs s", "repeats")
        found.append(("A 10-step job behind four 50-step jobs", header, rows))
    return found


def claims(report: ServiceReport) -> list[str]:
    """The ratios the project promises, one line each, where both services were measured."""
    by_name = {one.name: one for one in report.services}
    if "darkroom" not in by_name:
        return []
    ours, lines = by_name["darkroom"], []
    if ours.bare_around_s is not None:
        ratio = ours.lone.service_s / ours.bare_around_s
        line = f"a lone request takes {ratio:.2f} of the bare pipeline call (promised: at most 1.10)"
        if ours.lone.of_bare is not None:
            line += f"; in turns with it, beside the waiting service, {ours.lone.of_bare:.2f}"
        lines.append(line)
    classic = by_name.get("classic")
    if classic is not None and "8" in ours.closed and "8" in classic.closed:
        ratio = ours.closed["8"].images_per_s / classic.closed["8"].images_per_s
        line = f"at 8 concurrent it makes {ratio:.2f} times the images (promised: at least 1.5)"
        if ours.bare_around_s is not None and classic.bare_around_s is not None:
            drift = ours.bare_around_s / classic.bare_around_s
            line += f"; by the bare calls around each, {ratio * drift:.2f} times"
        lines.append(line)
    if classic is not None and classic.overtaking and ours.overtaking and classic.overtaking.waits_s > 0:
        share = ours.overtaking.waits_s / classic.overtaking.waits_s
        lines.append(f"the short job waits {share:.0%} of what it waits there (promised: at most 15 %)")
    return lines


def print_report(report: ServiceReport, console: Console) -> None:
    """Everything, to a terminal."""
    console.print(_heading(report), highlight=False)
    for title, header, rows in tables(report):
        table = Table(title=title, title_justify="left")
        for index, name in enumerate(header):
            table.add_column(name, justify="right" if index and rows and _is_number(rows[0][index]) else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in claims(report):
        console.print(f"- {line}", highlight=False)


def markdown(report: ServiceReport) -> str:
    """Everything, for docs/performance.md."""
    parts = [_heading(report)]
    for title, header, rows in tables(report):
        lines = [f"**{title}**", "", _line(header), _line(["---"] * len(header)), *(_line(row) for row in rows)]
        parts.append("\n".join(lines))
    parts.append("\n".join(f"- {line}" for line in claims(report)))
    return "\n\n".join(part for part in parts if part) + "\n"


def plot(report: ServiceReport, path: Path) -> None:
    """Goodput and latency over the offered rate, as a PNG. Needs matplotlib, and an open-loop measurement."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for one in report.services:
        rates = [load.offered_per_s for load in one.opened]
        left.plot(rates, [load.goodput_per_s for load in one.opened], marker="o", label=one.name)
        [line] = right.plot(rates, [load.latency_p50_s for load in one.opened], marker="o", label=f"{one.name} p50")
        right.plot(
            rates,
            [load.latency_p99_s for load in one.opened],
            marker="^",
            linestyle="--",
            color=line.get_color(),
            label=f"{one.name} p99",
        )
    highest = max(load.offered_per_s or 0.0 for one in report.services for load in one.opened)
    left.plot([0, highest], [0, highest], color="grey", linewidth=0.8, label="all in time")
    left.set(xlabel="offered, images/s", ylabel=f"images/s within {report.objective_s:.2f} s", ylim=(0, None))
    right.axhline(report.objective_s, color="grey", linewidth=0.8)
    right.set(xlabel="offered, images/s", ylabel="latency, s", yscale="log")
    left.legend()
    right.legend()
    size = f"{report.request.width}x{report.request.height}, {report.request.steps} steps, {report.request.sampler}"
    figure.suptitle(f"{size}; {report.machine['processors']} processors, commit {report.commit}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _heading(report: ServiceReport) -> str:
    request, machine = report.request, report.machine
    lines = [
        f"{report.started}, commit {report.commit}: `{report.command}`",
        f"{machine['processor']}, {machine['processors']} processors; "
        + ", ".join(f"{name} {version}" for name, version in report.versions.items()),
        f"{request.width}x{request.height}, {request.steps} steps of {request.sampler}, guidance "
        f"{request.guidance_scale:g}; safety layers {'on' if report.safety else 'off'} in Darkroom, none in the "
        "classic design",
    ]
    if report.picture_difference is not None:
        lines.append(
            f"the services' pictures of one request differ by {report.picture_difference:.2f} of 255 grey levels"
        )
    lines += [
        f"{one.name} was ready {one.ready_s:.0f} s after its start"
        for one in report.services
        if one.ready_s is not None
    ]
    lines += _reasons(report.services)
    return "  \n".join(lines)


def _reasons(services: Sequence[ServiceFigures]) -> list[str]:
    return [
        f"{one.name} answered: {reason}"
        for one in services
        for load in (*one.closed.values(), *one.opened)
        for reason in load.reasons[:1]
        if load.failed
    ]


def _load_row(label: str, name: str, load: LoadFigures) -> Cells:
    return (
        label,
        name,
        f"{load.images_per_s:.2f}",
        _seconds(load.latency_p50_s),
        _seconds(load.latency_p99_s),
        f"{load.goodput_per_s:.2f}",
        f"{load.goodput_share:.0%}",
        str(load.blocked),
        str(load.refused),
        str(load.failed),
    )


def _beside(seconds: float, bare_s: float | None) -> Cells:
    """The bare call's seconds, and the other's in them."""
    return ("", "") if bare_s is None else (_seconds(bare_s), f"{seconds / bare_s:.2f}")


def _seconds(value: float) -> str:
    return f"{value:.2f}"


def _is_number(cell: str) -> bool:
    return cell[:1].isdigit()


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
