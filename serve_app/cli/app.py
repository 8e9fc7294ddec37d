"""The command `darkroom`."""

from importlib.metadata import version
from typing import Annotated

import typer

from serve_app.cli.batch import batch
from serve_app.cli.config import config
from serve_app.cli.generate import generate
from serve_app.cli.jobs import cancel, jobs, result, wait
from serve_app.cli.keys import keys
from serve_app.cli.models import models
from serve_app.cli.provenance import provenance, verify
from serve_app.cli.serve import bench, serve
from serve_app.cli.upscale import upscale
from serve_app.cli.usage import usage

app = typer.Typer(name="darkroom", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(version("darkroom"))
        raise typer.Exit


@app.callback()
def darkroom(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Darkroom, a Stable Diffusion server: start it, draw images, and manage its jobs and models.

    Exit codes: 0 success, 1 the service or the job failed, 2 wrong usage, 130 interrupted.
    """


app.command()(serve)
app.command()(generate)
app.command()(upscale)
app.command()(batch)
app.command()(jobs)
app.command()(wait)
app.command()(result)
app.command()(cancel)
app.command()(usage)
app.command()(verify)
app.add_typer(models, name="models")
app.add_typer(config, name="config")
app.add_typer(keys, name="keys")
app.add_typer(provenance, name="provenance")
# all its arguments, --help included, are those of benchmarks.peers
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)(bench)
