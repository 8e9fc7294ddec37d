"""Measure Darkroom and what a user would pick instead, one after the other, each alone on the machine.

    python -m benchmarks.peers                                  everything that isn't measured yet
    python -m benchmarks.peers darkroom litserve throughput     these contenders, these parts
    python -m benchmarks.peers darkroom short --again           once more
    python -m benchmarks.peers --table                          what there is
    python -m benchmarks.peers --url http://127.0.0.1:8000      a Darkroom that runs already, and nothing else

The results are OUT/CONTENDER.json, OUT/table.md and OUT/rates.png.
"""

import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.http_clients import answering
from benchmarks.peers.darkroom import running
from benchmarks.peers.measuring import Session
from benchmarks.peers.parts import QUICK, Scale
from benchmarks.peers.registry import CONTENDERS, PART_NAMES, PARTS_OF, RUNNING
from benchmarks.peers.requests import DEMO
from benchmarks.peers.results import ContenderResults, PartName, read_results
from benchmarks.peers.tables import markdown, plot, text


def run(
    names: Annotated[
        list[str] | None,
        typer.Argument(help=f"contenders ({', '.join(CONTENDERS)}) and parts ({', '.join(PART_NAMES)}); none: all"),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="what is measured already, too")] = False,
    table: Annotated[bool, typer.Option("--table", help="measure nothing, show what there is")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="hardly anything of each, to see whether it works")] = False,
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path("peers-results"),
    cache: Annotated[Path, typer.Option(help="folder of environments and weights")] = Path("~/.cache/darkroom/peers"),
    seed: Annotated[int, typer.Option(help="of prompts, seeds and arrivals")] = 1,
    url: Annotated[str | None, typer.Option(callback=answering, help="of a Darkroom that runs already")] = None,
    model: Annotated[str, typer.Option(help="of that one")] = "demo-sd15",
    steps: Annotated[int, typer.Option(min=1, max=1000, help="of its pictures")] = DEMO.steps,
    size: Annotated[int, typer.Option(min=64, max=2048, help="of its pictures, pixels of both sides")] = DEMO.width,
) -> None:
    """Measure, and show the tables."""
    contenders, parts = chosen(names or [])
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped then, too
    session = Session(QUICK if quick else Scale(), seed, out.resolve(), cache.expanduser())
    if url is not None:
        like = DEMO.model_copy(update={"steps": steps, "width": size, "height": size})
        asyncio.run(session.measure(running(url, model, like), [part for part in RUNNING if part in parts]))
    elif not table:
        for name in contenders:
            asyncio.run(session.measure(CONTENDERS[name], left(read_results(out, name), parts, again)))
    results = [found for name in (*CONTENDERS, "running") if (found := read_results(out, name)).parts]
    (out / "table.md").write_text(markdown(results, out), encoding="utf-8")
    plot(results, out / "rates.png")
    print(text(results, out))


def chosen(names: Sequence[str]) -> tuple[list[str], list[PartName]]:
    """The contenders and the parts among these names; all of a kind where none is named. Raises BadParameter."""
    if unknown := [name for name in names if name not in CONTENDERS and name not in PART_NAMES]:
        raise typer.BadParameter(f"{', '.join(unknown)}: there are {', '.join((*CONTENDERS, *PART_NAMES))}")
    contenders = [name for name in CONTENDERS if name in names] or list(CONTENDERS)
    return contenders, [part for part in PART_NAMES if part in names] or list(PART_NAMES)


def left(results: ContenderResults, parts: Sequence[PartName], again: bool) -> list[PartName]:
    """The contender's parts among these that are to be measured, in its order."""
    return [part for part in PARTS_OF[results.name] if part in parts and (again or not results.measured(part))]


if __name__ == "__main__":
    typer.run(run)
