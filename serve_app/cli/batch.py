"""`darkroom batch`: draw a matrix of requests with a running service, and fetch its archive and contact sheet."""

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from serve_app.cli.client import Service
from serve_app.cli.options import DEFAULT_URL, AsJson, Key, Overwrite, Url
from serve_app.cli.output import Failure, ProgressBar, reporting, say, write_json, write_line

_POLL_S = 1.0

_ENDS = ("completed", "failed", "expired", "cancelled")


def _in_a_folder(path: Path | None) -> Path | None:
    if path is not None and not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}")
    return path


def batch(
    matrix: Annotated[
        Path,
        typer.Argument(metavar="MATRIX", exists=True, dir_okay=False, help="JSON or YAML, as POST /batches takes it."),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", callback=_in_a_folder, help="The archive of the images, a ZIP file."
        ),
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option(metavar="FILE", callback=_in_a_folder, help="The contact sheet, a PNG file.")
    ] = None,
    overwrite: Overwrite = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Draw every combination of a matrix' values. Ctrl-C cancels the batch."""
    for path in (output, sheet):
        if path is not None and path.exists() and not overwrite:
            raise typer.BadParameter(f"{path} exists already: give another file, or --overwrite")
    with reporting(as_json):
        request = _read(matrix)
        done = asyncio.run(_drawn(request, url, key, {"images": output, "sheet": sheet}))
        if not as_json:
            write_line(
                f"batch {done['batch_id']}: {done['status']}, {done['completed']} of {done['total']} drawn, "
                f"{done['device_seconds']:g} device seconds"
            )
        if done["status"] != "completed" or done["completed"] == 0:
            message = f"the batch ended as {done['status']}, with {done['completed']} of {done['total']} drawn"
            raise Failure(done["status"], message, document=done)
        if as_json:
            write_json(done)


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Failure("unreadable_file", f"{path}: {error}") from None
    if not isinstance(content, dict):
        raise Failure("unreadable_file", f"{path}: expected an object with request and axes")
    return content


async def _drawn(request: dict[str, Any], url: str, key: str | None, files: dict[str, Path | None]) -> dict[str, Any]:
    """The batch at its end; what it drew is in the files."""
    async with Service(url, key) as service:
        batch = await service.post("/batches", request)
        try:
            batch = await _ended(service, batch)
        except asyncio.CancelledError:
            await service.delete(f"/batches/{batch['batch_id']}")
            say(f"batch {batch['batch_id']} is cancelled")
            raise
        for name, path in files.items():
            if path is not None and batch["completed"]:
                await service.download(f"/batches/{batch['batch_id']}/{name}", path)
    return batch


async def _ended(service: Service, batch: dict[str, Any]) -> dict[str, Any]:
    with ProgressBar() as bar:
        while batch["status"] not in _ENDS:
            bar.update(batch["status"].replace("_", " "), batch["completed"] + batch["failed"], batch["total"])
            await asyncio.sleep(_POLL_S)
            batch = await service.get(f"/batches/{batch['batch_id']}", limit=0)
    return batch
