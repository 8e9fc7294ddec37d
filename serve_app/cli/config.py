"""`darkroom config`: the problems of a configuration file, and files laid over each other. Starts nothing."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deployments.engine.memory.table import MemoryTable
from serve_app.cli.options import AsJson
from serve_app.cli.output import Failure, reporting, say, write_json, write_line

if TYPE_CHECKING:
    from serve_app.config.settings import Settings

config = typer.Typer(no_args_is_help=True, help="Check and merge configuration files.")


@config.command()
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", exists=True, dir_okay=False)],
    start: Annotated[bool, typer.Option("--start", help="Also check its keys, secrets, certificate and port.")] = False,
    gpus: Annotated[
        float | None, typer.Option(min=0, help="Also check that the stages fit a cluster with this many GPUs.")
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Also show the planned memory of each denoising stage.")
    ] = False,
    gpu_gib: Annotated[
        float | None,
        typer.Option(min=0.1, help="Show the planned memory for one GPU of this size in GiB."),
    ] = None,
    cluster: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Also check that this cluster file of `ray up` has nodes for max_replicas.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show every problem of configuration files with its line."""
    from serve_app.config.check import (
        ConfigError,
        check_config,
        check_start,
        doubtful,
        ending,
        missing_files,
        unfit_claims,
    )

    with reporting(as_json):
        problems: dict[str, list[str]] = {}
        warnings: dict[str, list[str]] = {}
        forecasts: dict[str, dict[str, MemoryTable]] = {}
        for path in files:
            problems[str(path)] = []
            try:
                file = (check_start if start else check_config)(path)
                problems[str(path)] = missing_files(path, file)
                warnings[str(path)] = doubtful(path, file) + (ending(path, file) if start else [])
                problems[str(path)] += [] if gpus is None else unfit_claims(path, file, gpus)
                if cluster is not None:
                    from serve_app.config.cluster_file import check_cluster

                    problems[str(path)] += check_cluster(cluster, file.applications[0].args)
                if memory or gpu_gib is not None:
                    from serve_app.config.claims import memory_forecasts

                    forecasts[str(path)] = memory_forecasts(file.applications[0].args, gpu_gib)
            except ConfigError as error:
                problems[str(path)] = [*error.problems]
            except (OSError, UnicodeDecodeError) as error:
                problems[str(path)] = [f"{path}: {error}"]
        document: dict[str, Any] = {
            "files": [
                {
                    "file": path,
                    "ok": not lines,
                    "problems": lines,
                    "warnings": warnings.get(path, []),
                    **_memory(forecasts.get(path)),
                }
                for path, lines in problems.items()
            ]
        }
        if not as_json:
            for line in (line for lines in warnings.values() for line in lines):
                say(f"warning: {line}")
        if any(problems.values()):
            message = "\n".join(line for lines in problems.values() for line in lines)
            raise Failure("invalid_config", message, document=document)
        if as_json:
            write_json(document)
        else:
            for path in files:
                write_line(f"{path}: OK")
                for stage, table in forecasts.get(str(path), {}).items():
                    for line in [f"{stage}:", *(f"  {line}" for line in table.lines())]:
                        write_line(line)


@config.command()
def merge(
    base: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False)],
    overlays: Annotated[list[Path], typer.Argument(metavar="OVERLAY...", exists=True, dir_okay=False)],
) -> None:
    """Print a configuration file with overlays: files of the same form that name only what differs."""
    from serve_app.config.check import ConfigError
    from serve_app.config.overlay import merged

    with reporting(as_json=False):
        try:
            lines = merged(base, *overlays).splitlines()
        except (ConfigError, OSError, UnicodeDecodeError) as error:
            raise Failure("invalid_config", str(error)) from None
        for line in lines:
            write_line(line)


def _memory(tables: Mapping[str, MemoryTable] | None) -> dict[str, Any]:
    return {} if tables is None else {"memory": {stage: asdict(table) for stage, table in tables.items()}}


def read_settings(path: Path) -> "Settings":
    """The service's settings in a configuration file. Raises Failure with every problem and its line."""
    from serve_app.config.check import ConfigError, check_config

    try:
        return check_config(path).applications[0].args
    except (ConfigError, OSError) as error:
        raise Failure("invalid_config", str(error)) from None
