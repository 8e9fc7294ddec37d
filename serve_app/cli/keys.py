"""`darkroom keys`: API keys of a service. A key is printed once and kept nowhere; the service reads its line."""

import os
from pathlib import Path
from typing import Annotated

import typer

from serve_app.cli.options import AsJson
from serve_app.cli.output import Failure, reporting, say, write_json, write_line

keys = typer.Typer(no_args_is_help=True, help="The API keys of a service.")


@keys.callback()
def _keys() -> None:
    """Makes `keys` a group, though it has one command."""


@keys.command()
def make(
    tenant: Annotated[
        str, typer.Argument(help="Name of the owner of its jobs and images: 1 to 64 of A-Z, a-z, 0-9, '.', '_', '-'.")
    ],
    scopes: Annotated[
        str,
        typer.Option(metavar="SCOPE,...", help="What it allows: generate, read, admin, with commas between."),
    ] = "generate,read",
    file: Annotated[
        Path | None, typer.Option(metavar="KEYS", help="Append the key's line to this file (access.keys_file).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key and print it, with its line where no file is given."""
    with reporting(as_json):
        from serve_app.auth.key_file import BadKeys, Scope, new_key

        unknown = [name for name in scopes.split(",") if name not in list(Scope)]
        if unknown:
            raise typer.BadParameter(f"{unknown[0]!r} isn't a scope; scopes: {', '.join(Scope)}", param_hint="--scopes")
        try:
            key, line = new_key(tenant, frozenset(Scope(name) for name in scopes.split(",")))
        except BadKeys as error:
            raise typer.BadParameter(f"{tenant!r}: {error}", param_hint="TENANT") from None
        if file is not None:
            try:
                _append(file, line)
            except OSError as error:
                raise Failure("not_written", f"{file}: {error.strerror}") from None
        if as_json:
            write_json({"key": key, "line": line})
        else:
            write_line(key)
            if file is None:
                write_line(line)
                say("The first line is the key, the second is its line for the service's file, access.keys_file.")


def _append(path: Path, line: str) -> None:
    """In one write, so that a service that reads meanwhile sees all or nothing; a new file is its owner's alone."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "r+b") as file:
        ends = file.seek(0, os.SEEK_END)
        torn = ends > 0 and os.pread(descriptor, 1, ends - 1) != b"\n"
        file.write(("\n" * torn + line + "\n").encode())
