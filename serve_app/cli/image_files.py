"""Where commands put images: files that they name, files with names of their own, or stdout."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from serve_app.cli.output import Failure, say, write_line

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}

STDOUT = Path("-")


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Writes the images of one job.

    Attributes:
        output: what `--output` says: a file's path, STDOUT, or None for names of our own in this folder.
        overwrite: whether files that exist are replaced.
    """

    output: Path | None
    overwrite: bool

    def check(self, images: int, as_json: bool) -> None:
        """Raise BadParameter where it can be known before anything is drawn that this many images can't be written."""
        if self.output == STDOUT and (images > 1 or as_json):
            conflict = f"{images} images" if images > 1 else "--json"
            raise typer.BadParameter(f"- is one image on stdout, which leaves no place for {conflict}", param_hint="-o")
        if self.output not in (None, STDOUT) and images == 1 and not self.overwrite and self.output.exists():
            raise typer.BadParameter(f"{self.output} {_EXISTS}", param_hint="-o")

    @property
    def format(self) -> str | None:
        """The images' format; None where the service chooses."""
        return None if self.output is None or self.output == STDOUT else FORMATS[self.output.suffix.lower()]

    def write(self, name: str, image: dict[str, Any], of: int, data: bytes | None) -> str | None:
        """Write an image.

        Args:
            name: of its job, for a file that nobody has named.
            image: as GET /result shows it.
            of: the number of the job's images; of several each name gets its seed.
            data: the image; None where it was withheld.

        Returns:
            The file's name, or None without an image.

        Raises:
            Failure: it can't be written.
        """
        if data is None:
            return None
        if self.output == STDOUT:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return str(STDOUT)
        suffix = next(suffix for suffix, kind in FORMATS.items() if kind == image["format"])
        path = self.output or Path(f"darkroom-{name}{suffix}")
        if of > 1:
            path = path.with_stem(f"{path.stem}-{image['seed']}")
        try:
            with path.open("wb" if self.overwrite else "xb") as file:
                file.write(data)
        except FileExistsError:
            raise Failure("not_written", f"{path} {_EXISTS}") from None
        except OSError as error:
            raise Failure("not_written", str(error)) from None
        return str(path)

    def announce(self, line: str) -> None:
        """Say what was written: on stdout, unless that has the image."""
        (say if self.output == STDOUT else write_line)(line)


_EXISTS = "exists already: give another file, or --overwrite"


def image_file(path: Path | None) -> Path | None:
    """Check that images can be written to a path. Raises BadParameter."""
    if path is None or path == STDOUT:
        return path
    if path.suffix.lower() not in FORMATS:
        raise typer.BadParameter(f"{path.name} must end in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}")
    return path
