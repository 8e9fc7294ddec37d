"""`darkroom config check`: what is wrong with a configuration file, without starting anything."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from deployments.engine.memory.table import MemoryTable
from serve_app.cli.failure import Failure
from serve_app.cli.options import AsJson
from serve_app.cli.terminal import reporting, write_json, write_line

config = typer.Typer(no_args_is_help=True, help="The service's configuration.")


@config.command()
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", exists=True, dir_okay=False)],
    start: Annotated[bool, typer.Option("--start", help="Its API keys can be read here and its port is free, too.")] = (
        False
    ),
    gpus: Annotated[
        float | None, typer.Option(min=0, help="A cluster of so many GPUs can hold the stages' claims, too.")
    ] = None,
    memory: Annotated[
        bool, typer.Option("--memory", help="Say what each denoising stage's memory would hold, too.")
    ] = False,
    gpu_gib: Annotated[
        float | None, typer.Option(min=0.1, help="The same with a GPU of so much memory, that the stages share.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Name every problem of configuration files with its line."""
    from serve_app.config.check import ConfigError, check_config, check_start, missing_files, unfit_claims

    with reporting(as_json):
        problems: dict[str, list[str]] = {}
        forecasts: dict[str, dict[str, MemoryTable]] = {}
        for path in files:
            problems[str(path)] = []
            try:
                file = (check_start if start else check_config)(path)
                problems[str(path)] = missing_files(path, file)
                problems[str(path)] += [] if gpus is None else unfit_claims(path, file, gpus)
                if memory or gpu_gib is not None:
                    from serve_app.config.claims import memory_forecasts

                    forecasts[str(path)] = memory_forecasts(file.applications[0].args, gpu_gib)
            except ConfigError as error:
                problems[str(path)] = [*error.problems]
            except (OSError, UnicodeDecodeError) as error:
                problems[str(path)] = [f"{path}: {error}"]
        document: dict[str, Any] = {
            "files": [
                {"file": path, "ok": not found, "problems": found, **_memory(forecasts.get(path))}
                for path, found in problems.items()
            ]
        }
        wrong = [problem for found in problems.values() for problem in found]
        if wrong:
            raise Failure("invalid_config", "\n".join(wrong), document=document)
        if as_json:
            write_json(document)
        else:
            for path in files:
                write_line(f"{path}: right")
                for stage, table in forecasts.get(str(path), {}).items():
                    for line in [f"{stage}:", *(f"  {line}" for line in table.lines())]:
                        write_line(line)


def _memory(tables: Mapping[str, MemoryTable] | None) -> dict[str, Any]:
    return {} if tables is None else {"memory": {stage: asdict(table) for stage, table in tables.items()}}
