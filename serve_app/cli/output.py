"""The output of commands: results on stdout, messages on stderr, images in files, and exit codes.

Prompts and messages may come from strangers: they are never read as markup, and control characters are replaced.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import typer

from deployments.engine.errors import DarkroomError

FAILED, INTERRUPTED = 1, 130

_WIDTH_WITHOUT_TERMINAL = 180  # columns of a table in a file or a pipe

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


class Failure(Exception):
    """The reason why a command failed: exit code 1.

    Args:
        code: an error code of docs/api.md or docs/cli.md.
        message: the text for people.
        field: the part of the request that is wrong, if there is one.
        document: what --json prints; without it, the error in the form in which the service answers errors.
    """

    def __init__(self, code: str, message: str, field: str | None = None, document: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.document = document


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
    return {"error": error if failure.field is None else {**error, "field": failure.field}}


def say(message: str) -> None:
    """Write a message to stderr."""
    typer.echo("\n".join(map(printable, message.split("\n"))), err=True)


def write_line(text: str) -> None:
    """Write a line of the result to stdout."""
    typer.echo(printable(text))


def write_json(document: Any) -> None:
    """Write the result to stdout as JSON."""
    typer.echo(json.dumps(document, indent=1))


def write_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write the result to stdout as a table. The last column takes the remaining width, on several lines if needed."""
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
    """The text with control characters replaced."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


class ProgressBar:
    """A progress bar on stderr while images are drawn; nothing where stderr isn't a terminal. A context manager."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("waiting", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, activity: str, step: int, steps: int | None) -> None:
        """Show a word or two and the steps done; `steps` is None while their number is unknown."""
        self._progress.update(self._task, description=activity, completed=step, total=steps)


def image_file(path: Path) -> Path:
    """Check that an image can be written to a path. Raises BadParameter."""
    if path.suffix.lower() not in FORMATS:
        raise typer.BadParameter(f"{path.name} must end in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}")
    return path


def write_image(path: Path, data: bytes | None) -> str | None:
    """Write an image; returns the file's name, or None without an image. Raises Failure."""
    if data is None:
        return None
    try:
        path.write_bytes(data)
    except OSError as error:
        raise Failure("not_written", str(error)) from None
    return str(path)


def check_ended(job: dict[str, Any]) -> None:
    """Raise Failure for a job that ended without an image."""
    error = job["error"]
    if job["status"] == "cancelled":
        raise Failure("cancelled", "the job was cancelled", document=job)
    if error is not None:
        raise Failure(error["code"], f"{error['code']}: {error['message']}", document=job)
