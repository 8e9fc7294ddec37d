"""`darkroom config check`: what is wrong with a configuration file, without starting anything."""

from pathlib import Path
from typing import Annotated, Any

import typer

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
    as_json: AsJson = False,
) -> None:
    """Name every problem of configuration files with its line."""
    from serve_app.config_check import ConfigError, check_config, check_start, missing_files, unfit_claims

    with reporting(as_json):
        problems: dict[str, list[str]] = {}
        for path in files:
            problems[str(path)] = []
            try:
                file = (check_start if start else check_config)(path)
                problems[str(path)] = missing_files(path, file)
                problems[str(path)] += [] if gpus is None else unfit_claims(path, file, gpus)
            except ConfigError as error:
                problems[str(path)] = [*error.problems]
            except (OSError, UnicodeDecodeError) as error:
                problems[str(path)] = [f"{path}: {error}"]
        document: dict[str, Any] = {
            "files": [{"file": path, "ok": not found, "problems": found} for path, found in problems.items()]
        }
        wrong = [problem for found in problems.values() for problem in found]
        if wrong:
            raise Failure("invalid_config", "\n".join(wrong), document=document)
        if as_json:
            write_json(document)
        else:
            for path in files:
                write_line(f"{path}: right")
