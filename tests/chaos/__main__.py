"""Faults, tried on a whole service on this machine. `make chaos` runs all three, in about an hour.

    python -m tests.chaos kills --jobs 300 --kills 30 --json kills.json
    python -m tests.chaos outages --jobs 60 --outages 8 --json outages.json
    python -m tests.chaos soak --minutes 30 --json soak.json

What was found last is in docs/reliability.md. Each ends with status 1 if a promise was broken.
"""

import asyncio
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.pretty import pprint

from tests.chaos.kills import KillFigures, measure_kills
from tests.chaos.outages import OutageFigures, measure_outages
from tests.chaos.running import RunningService, log_tail, new_service
from tests.chaos.soak import SOAK_JOBS, SoakFigures, measure_soak
from tests.serve_app.postgres import MISSING, binaries, running_postgres

cli = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

_Json = Annotated[Path | None, typer.Option("--json", help="write the figures here")]
_AtOnce = Annotated[int, typer.Option(min=1)]
_Seed = Annotated[int, typer.Option(help="of what happens when")]


@contextmanager
def _service(**changes: Mapping[str, Any]) -> Iterator[tuple[RunningService, Path]]:
    with tempfile.TemporaryDirectory(prefix="dkc-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the service is stopped then, too
        service = new_service(folder, **changes)
        try:
            yield service, folder
        except BaseException:
            Console(stderr=True).print(log_tail(folder), markup=False)
            raise
        finally:
            service.stop()


def _end(figures: KillFigures | OutageFigures | SoakFigures, json_path: Path | None) -> None:
    if json_path is not None:
        json_path.write_text(figures.model_dump_json(indent=1), encoding="utf-8")
    pprint(figures, expand_all=True)
    if figures.broken:
        raise typer.Exit(1)


@cli.command()
def kills(
    jobs: Annotated[int, typer.Option(min=1)] = 300,
    kills: Annotated[int, typer.Option(min=0)] = 30,
    at_once: _AtOnce = 8,
    seed: _Seed = 1,
    json_path: _Json = None,
) -> None:
    """Kill processes at random under running jobs."""
    with _service() as (service, _):
        figures = asyncio.run(measure_kills(service, jobs, kills, at_once, seed))
    _end(figures, json_path)


@cli.command()
def outages(
    jobs: Annotated[int, typer.Option(min=1)] = 60,
    outages: Annotated[int, typer.Option(min=0)] = 8,
    at_once: _AtOnce = 8,
    seed: _Seed = 1,
    json_path: _Json = None,
) -> None:
    """Take the database, the images' folder and the disk away under running jobs."""
    programs = binaries()
    if programs is None:
        raise typer.BadParameter(MISSING)
    with (
        running_postgres(programs) as postgres,
        _service(jobs={"database_url": postgres.create("chaos")}) as (service, folder),
    ):
        figures = asyncio.run(measure_outages(service, folder / "images", postgres, jobs, outages, at_once, seed))
    _end(figures, json_path)


@cli.command()
def soak(minutes: Annotated[float, typer.Option(min=0.1)] = 30.0, seed: _Seed = 1, json_path: _Json = None) -> None:
    """Keep the service busy and watch what grows."""
    with _service(jobs=SOAK_JOBS) as (service, folder):
        figures = asyncio.run(measure_soak(service, folder, minutes, seed))
    _end(figures, json_path)


if __name__ == "__main__":
    cli()
