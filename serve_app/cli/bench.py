"""`darkroom bench`: hands over to benchmarks/service.py of the checkout that this package was installed from."""

import os
import sys
from pathlib import Path

import typer

import serve_app
from serve_app.cli.failure import Failure
from serve_app.cli.terminal import reporting


def bench(context: typer.Context) -> None:
    """Measure a service against the classic design; every option is benchmarks.service's own (--help lists them)."""
    with reporting(as_json=False):
        checkout = Path(serve_app.__file__).resolve().parent.parent
        command, environment = bench_command(checkout, context.args)
        os.execve(command[0], command, environment)  # noqa: S606  # no shell is wanted


def bench_command(checkout: Path, arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """The benchmark's command and its environment. Raises Failure if `checkout` has no benchmarks."""
    if not (checkout / "benchmarks" / "service.py").is_file():
        raise Failure(
            "no_benchmarks",
            "the benchmarks are in Darkroom's repository and not in its package: run this from a checkout, where "
            "`make test` has installed it",
        )
    # not through this process's path: another package may well be called benchmarks, too
    path = os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH"))))
    return [sys.executable, "-m", "benchmarks.service", *arguments], {**os.environ, "PYTHONPATH": path}
