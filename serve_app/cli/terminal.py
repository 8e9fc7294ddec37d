"""What commands write: answers on stdout, the rest on stderr, and how they end. Knows no command and no service.

Prompts and messages come from strangers: nothing in them is taken for markup, or reaches the terminal as a control
character.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from deployments.engine.errors import DarkroomError
from serve_app.cli.failure import Failure

FAILED, INTERRUPTED = 1, 130

# a table that goes into a file or a pipe has no terminal to fit
_WIDTH_WITHOUT_TERMINAL = 180


@contextmanager
def reporting(as_json: bool) -> Iterator[None]:
    """Let the command end with its exit code and one line for people in place of a trace; raises typer.Exit.

    as_json: stdout gets a document also of what failed.
    """
    try:
        yield
    except (Failure, DarkroomError) as error:
        failure = error if isinstance(error, Failure) else Failure(error.code, error.message, error.field)
        if as_json:
            write_json(failure.document if failure.document is not None else error_document(failure))
        where = f"{failure.field}: " if failure.field and failure.field not in failure.message else ""
        say(f"error: {where}{failure.message}")
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        say("interrupted")
        raise typer.Exit(INTERRUPTED) from None


def error_document(failure: Failure) -> dict[str, Any]:
    """A failure in the form in which the service answers errors."""
    error: dict[str, Any] = {"code": failure.code, "message": failure.message}
    return {"error": error if failure.field is None else {**error, "field": failure.field}}


def say(message: str) -> None:
    """A line for people, on stderr."""
    typer.echo("\n".join(map(printable, message.split("\n"))), err=True)


def write_line(text: str) -> None:
    """A line of the answer, on stdout."""
    typer.echo(printable(text))


def write_json(document: Any) -> None:
    """The answer for machines."""
    typer.echo(json.dumps(document, indent=1))


def write_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The answer for people. The last column gets what width is left, in as many lines as it needs."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column != columns[-1], overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else _WIDTH_WITHOUT_TERMINAL).print(table)


def printable(text: str) -> str:
    """The text without what a terminal would obey."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)
