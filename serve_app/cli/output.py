"""The output of commands: results on stdout, messages on stderr, images in files, and exit codes.

Prompts and messages may come from strangers: they are never read as markup, and control characters are replaced.
"""

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import typer

from deployments.engine.errors import DarkroomError

FAILED, INTERRUPTED = 1, 130

_GAP = "  "  # between two columns of a table
_LEAST_WIDTH = 5  # characters of a column, however narrow the terminal is


class Failure(Exception):
    """The reason why a command failed: exit code 1.

    Args:
        code: an error code of docs/api.md or docs/cli.md.
        message: the text for people.
        field: the part of the request that is wrong, if there is one.
        document: what --json prints; without it, the error in the form in which the service answers errors.
        job_id: of the job that it is about, if there is one; --json prints it beside the error.
    """

    def __init__(
        self, code: str, message: str, field: str | None = None, document: Any = None, job_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.document = document
        self.job_id = job_id


@contextmanager
def reporting(as_json: bool) -> Iterator[None]:
    """End a command that fails with an exit code and a line on stderr; with `as_json`, also a document on stdout."""
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
    document: dict[str, Any] = {"error": error if failure.field is None else {**error, "field": failure.field}}
    return document if failure.job_id is None else {**document, "job_id": failure.job_id}


def say(message: str) -> None:
    """Write a message to stderr."""
    typer.echo("\n".join(map(printable, message.split("\n"))), err=True)


def write_line(text: str) -> None:
    """Write a line of the result to stdout."""
    typer.echo(printable(text))


def write_json(document: Any) -> None:
    """Write the result to stdout as JSON."""
    typer.echo(json.dumps(document, indent=1))


def write_table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> None:
    """Write the result to stdout as a table, a row a line.

    On a terminal it is as wide as that. The first column, which names the rows, is never cut; of the others the widest
    give way.

    Args:
        columns: their titles.
        rows: their cells.
        width: in characters; None for the terminal's, and no limit where stdout isn't one.
    """
    from rich.cells import cell_len, set_cell_size

    if width is None and sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
    table = [list(columns), *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    if width is not None:
        room = width - widths[0] - len(_GAP) * (len(columns) - 1)
        widths[1:] = _narrowed(widths[1:], room)
    for row in table:
        cells = [
            cell if cell_len(cell) <= wide else set_cell_size(cell, max(0, wide - 1)) + "\u2026"
            for cell, wide in zip(row, widths, strict=True)
        ]
        typer.echo(_GAP.join(map(set_cell_size, cells, widths)).rstrip())


def _narrowed(widths: Sequence[int], room: int) -> list[int]:
    """The widths of columns that are to share `room` characters: those above a common limit are cut to it."""
    limit = max(widths, default=0)
    while sum(min(wide, limit) for wide in widths) > room and limit > _LEAST_WIDTH:
        limit -= 1
    return [min(wide, limit) for wide in widths]


def printable(text: str) -> str:
    """The text with control characters replaced."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


class ProgressBar:
    """A progress bar on stderr while images are drawn; nothing where stderr isn't a terminal. A context manager."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        left = TextColumn("{task.fields[left]}")
        self._progress = Progress(*columns, left, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("waiting", total=None, left="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, activity: str, step: int, steps: int | None, remaining_s: float | None = None) -> None:
        """Show how far the work is.

        Args:
            activity: a word or two.
            step: steps done.
            steps: of the whole work; None while their number is unknown.
            remaining_s: seconds until the end; None where nobody knows better than the pace of the steps so far.
        """
        self._progress.update(self._task, description=activity, completed=step, total=steps)
        left_s = remaining_s if remaining_s is not None else self._progress.tasks[self._task].time_remaining
        self._progress.update(self._task, left="" if left_s is None else f"about {max(1, round(left_s))} s left")


def check_ended(job: dict[str, Any]) -> None:
    """Raise Failure for a job that ended without an image."""
    error = job["error"]
    if job["status"] == "cancelled":
        raise Failure("cancelled", "the job was cancelled", document=job)
    if error is not None:
        raise Failure(error["code"], f"{error['code']}: {error['message']}", document=job)
