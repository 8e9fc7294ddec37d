"""The LoRAs that requests may name: the safetensors files of one folder, by their names without the ending.

Reads names and headers, no weights: the front asks it too. A name is never a path. Knows nothing of models or torch.
"""

import re
from pathlib import Path

from deployments.engine.checkpoint_files import PICKLES, read_header, resolve_source
from deployments.engine.errors import CheckpointError, LoraRefused

_SUFFIX = ".safetensors"
_NAME = re.compile(r"(?!\s)[^\x00-\x1f\x7f<>:/\\]{1,128}(?<!\s)")


class LoraFolder:
    """What lies in the folder at the time that it is asked for: files may come and go while the service runs."""

    def __init__(self, source: str | None) -> None:
        """source: as LoraSettings.folder. Raises CheckpointError if there is no such folder."""
        self._folder: Path | None = None
        if source is not None:
            self._folder = resolve_source(source) if source.startswith("package:") else Path(source).expanduser()
            if not self._folder.is_dir():
                raise CheckpointError(f"{source}: expected a folder of LoRAs")

    def names(self) -> tuple[str, ...]:
        """In alphabetical order."""
        if self._folder is None:
            return ()
        files = (file.stem for file in self._folder.iterdir() if file.suffix == _SUFFIX and file.is_file())
        return tuple(sorted(name for name in files if _NAME.fullmatch(name)))

    def find(self, name: str) -> Path:
        """The file of this name. Raises LoraRefused if there is none."""
        if self._folder is None or _NAME.fullmatch(name) is None:
            raise _unknown(name)
        file = self._folder / f"{name}{_SUFFIX}"
        if file.is_file():
            return file
        pickle = next((kind for kind in PICKLES if (self._folder / f"{name}{kind}").is_file()), None)
        if pickle is None:
            raise _unknown(name)
        raise LoraRefused(
            f"LoRA {name!r} is a {pickle} file: a pickle can run code when it is read; convert it to .safetensors",
            "loras",
        )

    def check(self, name: str) -> Path:
        """The same. Raises LoraRefused also if the file isn't safetensors or is cut short."""
        file = self.find(name)
        try:
            read_header(file)
        except (CheckpointError, OSError) as error:
            raise LoraRefused(f"LoRA {name!r} can't be read: {_without(file.parent, error)}", "loras") from None
        return file


def _unknown(name: str) -> LoraRefused:
    shown = ascii(name)
    return LoraRefused(f"no LoRA named {shown if len(shown) <= 64 else f'{shown[:64]}…'}", "loras")


def _without(folder: Path, error: Exception) -> str:
    """What is wrong with a file, by its name alone: where it lies is no client's business."""
    return str(error).replace(f"{folder}/", "")
