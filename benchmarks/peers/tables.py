"""The tables of all that was measured, what became of the goals, and a plot. Measures nothing."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from benchmarks.load_figures import FrozenModel, LoadFigures
from benchmarks.peers.contender import Checkpoint
from benchmarks.peers.registry import CONTENDERS
from benchmarks.peers.results import (
    ContenderResults,
    HangUp,
    Idle,
    Kill,
    Mixed,
    Overload,
    Picture,
    Rates,
    Short,
    Start,
    Steps,
    Throughput,
)
from benchmarks.text_table import text_table

Table = tuple[str, Sequence[str], list[Sequence[str]]]
"""Title, header, rows."""

_Kind = TypeVar("_Kind", bound=FrozenModel)
_OURS = "darkroom"
_FLOOR: Mapping[Checkpoint, str] = {"demo": "bare", "real": "real-bare"}


def text(results: Sequence[ContenderResults], out: Path) -> str:
    """All tables for a terminal, and the goals."""
    parts = [f"{title}\n{text_table(header, rows)}" for title, header, rows in tables(results, out)]
    return "\n\n".join([*parts, *goals(results)])


def markdown(results: Sequence[ContenderResults], out: Path) -> str:
    """The same for a page."""
    parts = []
    for title, header, rows in tables(results, out):
        lines = [f"**{title}**", "", _line(header), _line(["---"] * len(header)), *map(_line, rows)]
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, "\n".join(f"- {goal}" for goal in goals(results))]) + "\n"


def tables(results: Sequence[ContenderResults], out: Path) -> list[Table]:
    """Those for which something was measured. out: where the pictures are."""
    made = [
        _throughput(results, "demo", "demo-sd15, images/s by clients at once"),
        _rates(results),
        _company(results),
        _start(results),
        _losses(results),
        _throughput(results, "own", "A service that ran before, images/s"),
        _throughput(results, "real", "SD1.5 at real size, random weights, 256 x 256, images/s"),
        _steps(results),
        _likeness(results, out),
        _failures(results),
    ]
    return [table for table in made if table[2]]


def goals(results: Sequence[ContenderResults]) -> list[str]:
    """What was aimed at, whether it was met, and the figures; one line each, of what was measured."""
    by_name = {one.name: one for one in results}
    ours = by_name.get(_OURS)
    if ours is None:
        return []
    others = [one for one in results if one.name != _OURS and _checkpoint(one.name) == "demo"]
    lines = []
    for clients in (1, 4, 8, 16):
        mine, theirs = _drawn(ours, clients), [(rate, one.name) for one in others if (rate := _drawn(one, clients))]
        if mine and theirs:
            best, name = max(theirs)
            least = 0.95 if clients == 1 else 1.0
            lines.append(_goal(f"{clients} at once: {mine / best:.2f} x {name}", f">= {least:g}", mine >= least * best))
    lines += _compared(ours, others, Mixed, lambda one: 1 / one.load.images_per_s, "mixed work takes", 1 / 1.5)
    lines += _compared(ours, others, Short, lambda one: one.overtaking.waits_s, "the short job waits", 1.0)
    if idle := ours.figures(Idle):
        share = idle.processor_share
        lines.append(_goal(f"idle processor time {share:.1%} of a core", "<= 3 %", share <= 0.03))
    if start := ours.figures(Start):
        ratio = start.first_s / start.later_s
        lines.append(_goal(f"the first image costs {ratio:.2f} later ones", "<= 1.5", ratio <= 1.5))
    mine_real, cpp = (
        by_name[name].figures(Steps) if name in by_name else None for name in ("real-darkroom", "real-sdcpp")
    )
    if mine_real and cpp:
        ratio = mine_real.step_s / cpp.step_s
        lines.append(_goal(f"a step at real size takes {ratio:.2f} of stable-diffusion.cpp's", "<= 1.1", ratio <= 1.1))
    return lines


def plot(results: Sequence[ContenderResults], path: Path) -> None:
    """Goodput and median latency over the offered rate, as a PNG, if rates were measured."""
    measured = [(one.name, rates) for one in results if (rates := one.figures(Rates))]
    if not measured:
        return
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for name, rates in measured:
        offered = [load.offered_per_s for load in rates.opened]
        left.plot(offered, [load.goodput_per_s for load in rates.opened], marker="o", label=name)
        right.plot(offered, [load.latency_p50_s or math.nan for load in rates.opened], marker="o", label=name)
    objective_s = measured[0][1].objective_s
    highest = max(load.offered_per_s or 0.0 for _, rates in measured for load in rates.opened)
    left.plot([0, highest], [0, highest], color="grey", linewidth=0.8)
    left.set(xlabel="offered, images/s", ylabel=f"images/s within {objective_s:.2f} s", ylim=(0, None))
    right.axhline(objective_s, color="grey", linewidth=0.8)
    right.set(xlabel="offered, images/s", ylabel="median latency, s", yscale="log")
    left.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def psnr(picture: Path, other: Path) -> float:
    """Likeness of two pictures of one size in dB; infinite for equal ones."""
    ours, theirs = (np.asarray(Image.open(path).convert("RGB"), dtype=np.float64) for path in (picture, other))
    error = float(((ours - theirs) ** 2).mean())
    return math.inf if error == 0.0 else 10 * math.log10(255**2 / error)


def _throughput(results: Sequence[ContenderResults], checkpoint: str, title: str) -> Table:
    measured = [(one, found) for one, found in _of(results, Throughput) if _checkpoint(one.name) == checkpoint]
    clients = sorted({number for _, found in measured for number in found.closed})
    header = ["", *map(str, clients), "p50 at 1, s", "bare call before it, s"]
    rows: list[Sequence[str]] = []
    for one, found in measured:
        bare_s = one.parts["throughput"].bare_s
        rates = [f"{found.closed[number].images_per_s:.3g}" if number in found.closed else "" for number in clients]
        alone_s = found.closed[1].latency_p50_s if 1 in found.closed else None
        rows.append([one.name, *rates, _seconds(alone_s), _seconds(bare_s)])
    return title, header, rows


def _rates(results: Sequence[ContenderResults]) -> Table:
    measured = list(_of(results, Rates))
    if not measured:
        return "", [], []
    header = ["", *(f"{load.offered_per_s:.2f}/s offered" for load in measured[0][1].opened)]
    rows: list[Sequence[str]] = [[one.name, *map(_load, found.opened)] for one, found in measured]
    return f"p50 / p99 s, goodput within {measured[0][1].objective_s:.2f} s in images/s", header, rows


def _company(results: Sequence[ContenderResults]) -> Table:
    rows = [
        [
            one.name,
            _figure(one, Mixed, lambda found: f"{found.load.images_per_s:.2f}"),
            _figure(one, Mixed, lambda found: f"{found.load.latency_p50_s:.1f} / {found.load.latency_p99_s:.1f}"),
            _figure(one, Short, lambda found: _seconds(found.overtaking.waits_s)),
            _figure(one, Short, lambda found: _seconds(found.overtaking.alone_s)),
        ]
        for one in results
        if one.figures(Mixed) or one.figures(Short)
    ]
    header = [
        "",
        "mixed work, 8 at once, images/s",
        "p50 / p99 s",
        "short job behind four long ones waits s",
        "alone s",
    ]
    return "Unlike requests together", header, list(rows)


def _start(results: Sequence[ContenderResults]) -> Table:
    rows = [
        [
            one.name,
            _figure(one, Start, lambda found: f"{found.ready_s:.1f}"),
            _figure(one, Start, lambda found: _seconds(found.first_s)),
            _figure(one, Start, lambda found: _seconds(found.later_s)),
            _figure(one, Start, lambda found: f"{found.ready_s + found.first_s:.1f}"),
            _figure(one, Idle, lambda found: f"{found.memory_bytes / 2**30:.2f}"),
            _figure(one, Idle, lambda found: f"{found.processor_share:.1%}"),
        ]
        for one in results
        if one.figures(Start) or one.figures(Idle)
    ]
    header = ["", "ready s", "first image s", "later s", "start to first image s", "memory GiB", "idle, of a core"]
    return "Start and rest", header, list(rows)


def _losses(results: Sequence[ContenderResults]) -> Table:
    rows = [
        [
            one.name,
            _figure(one, Kill, lambda found: f"{found.answered} of {found.asked}"),
            _figure(one, Kill, lambda found: f"{found.failed} / {found.silent}"),
            _figure(one, Kill, lambda found: "never" if found.back_s is None else f"{found.back_s:.1f}"),
            _figure(one, HangUp, lambda found: _seconds(max(0.0, found.after_s - found.alone_s))),
            _figure(one, Overload, lambda found: _fates(found.load)),
            _figure(one, Overload, lambda found: _seconds(found.after_s)),
        ]
        for one in results
        if one.figures(Kill) or one.figures(HangUp) or one.figures(Overload)
    ]
    header = [
        "",
        "worker killed: answered",
        "failed / silent",
        "draws again after s",
        "short job after four hung up waits s",
        "twice the load: in time / late / refused / failed",
        "a request after it s",
    ]
    return "What is lost", header, list(rows)


def _steps(results: Sequence[ContenderResults]) -> Table:
    rows: list[Sequence[str]] = [
        [one.name, _seconds(found.step_s), _seconds(found.rest_s)] for one, found in _of(results, Steps)
    ]
    return "SD1.5 at real size, a lone picture", ["", "a step s", "text, decode and HTTP s"], rows


def _likeness(results: Sequence[ContenderResults], out: Path) -> Table:
    pictures = {one.name: out / found.file for one, found in _of(results, Picture)}
    rows: list[Sequence[str]] = []
    for name, picture in pictures.items():
        floor = _FLOOR.get(_checkpoint(name))
        if floor in pictures and name != floor:
            rows.append([name, floor, f"{psnr(picture, pictures[floor]):.1f}"])
    return "Likeness of one request's picture", ["", "to that of", "PSNR dB"], rows


def _failures(results: Sequence[ContenderResults]) -> Table:
    rows: list[Sequence[str]] = [
        [one.name, part, result.failed] for one in results for part, result in one.parts.items() if result.failed
    ]
    return "Not measured", ["", "part", "why"], rows


def _of(results: Sequence[ContenderResults], kind: type[_Kind]) -> Iterable[tuple[ContenderResults, _Kind]]:
    return ((one, found) for one in results if (found := one.figures(kind)) is not None)


def _figure(one: ContenderResults, kind: type[_Kind], cell: Callable[[_Kind], str]) -> str:
    found = one.figures(kind)
    return "" if found is None else cell(found)


def _checkpoint(name: str) -> Checkpoint:
    return CONTENDERS[name].checkpoint if name in CONTENDERS else "own"


def _drawn(one: ContenderResults, clients: int) -> float | None:
    """Pictures in the time of a bare call, which the machine's drift leaves alone."""
    found, bare_s = one.figures(Throughput), one.parts["throughput"].bare_s if "throughput" in one.parts else None
    if found is None or bare_s is None or clients not in found.closed:
        return None
    return found.closed[clients].images_per_s * bare_s


def _compared(
    ours: ContenderResults,
    others: Sequence[ContenderResults],
    kind: type[_Kind],
    cost: Callable[[_Kind], float],
    what: str,
    most: float,
) -> list[str]:
    """A goal that our cost is at most such a share of the best of the others', both in bare calls."""
    part = kind.model_fields["part"].default
    mine = ours.figures(kind)
    bare_s = {one.name: one.parts[part].bare_s for one in (ours, *others) if part in one.parts}
    theirs = [
        (cost(found) / bare, one.name) for one, found in _of(others, kind) if (bare := bare_s[one.name]) is not None
    ]
    our_bare_s = bare_s.get(ours.name)
    if mine is None or our_bare_s is None or not theirs:
        return []
    best, name = min(theirs)
    share = cost(mine) / our_bare_s / best if best else math.inf
    return [_goal(f"{what} {share:.2f} of {name}'s", f"<= {most:.2f}", share <= most)]


def _goal(what: str, aim: str, met: bool) -> str:
    return f"{what} (goal {aim}): {'met' if met else 'missed'}"


def _load(load: LoadFigures) -> str:
    return f"{load.latency_p50_s:.1f} / {load.latency_p99_s:.1f}, {load.goodput_per_s:.2f}"


def _fates(load: LoadFigures) -> str:
    in_time = round(load.goodput_share * load.offered)
    return f"{in_time} / {load.done - in_time} / {load.refused} / {load.failed}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
