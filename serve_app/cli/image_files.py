"""The image files that commands write: their names, and the jobs that have nothing to write."""

from pathlib import Path
from typing import Any

import typer

from serve_app.cli.failure import Failure

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def image_file(path: Path) -> Path:
    """The path, if an image can be written there. Raises BadParameter."""
    if path.suffix.lower() not in FORMATS:
        raise typer.BadParameter(f"{path.name} must end in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}")
    return path


def write_image(path: Path, data: bytes | None) -> str | None:
    """The file's name, None where there is no image. Raises Failure."""
    if data is None:
        return None
    try:
        path.write_bytes(data)
    except OSError as error:
        raise Failure("not_written", str(error)) from None
    return str(path)


def check_ended(job: dict[str, Any]) -> None:
    """Raise Failure for an ended job that has nothing to show."""
    error = job["error"]
    if job["status"] == "cancelled":
        raise Failure("cancelled", "the job was cancelled", document=job)
    if error is not None:
        raise Failure(error["code"], f"{error['code']}: {error['message']}", document=job)
