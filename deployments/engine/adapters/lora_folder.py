"""The LoRAs that requests may name: the safetensors files of one folder, by their names without the ending.

Reads names and headers, no weights: the front asks it too. A name is never a path. Knows nothing of models or torch.
"""

from pathlib import Path

from deployments.engine.checkpoints.files import PICKLES, read_header
from deployments.engine.checkpoints.weight_folder import find_folder, is_name, shown_name, without_folder
from deployments.engine.errors import CheckpointError, LoraRefused

_SUFFIX = ".safetensors"


class LoraFolder:
    """What lies in the folder at the time that it is asked for: files may come and go while the service runs."""

    def __init__(self, source: str | None) -> None:
        """source: as LoraSettings.folder. Raises CheckpointError if there is no such folder."""
        self._folder = None if source is None else find_folder(source, "LoRAs")

    def names(self) -> tuple[str, ...]:
        """In alphabetical order."""
        if self._folder is None:
            return ()
        files = (file.stem for file in self._folder.iterdir() if file.suffix == _SUFFIX and file.is_file())
        return tuple(sorted(name for name in files if is_name(name)))

    def find(self, name: str) -> Path:
        """The file of this name. Raises LoraRefused if there is none."""
        if self._folder is None or not is_name(name):
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
            raise LoraRefused(f"LoRA {name!r} can't be read: {without_folder(file.parent, error)}", "loras") from None
        return file


def _unknown(name: str) -> LoraRefused:
    return LoraRefused(f"no LoRA named {shown_name(name)}", "loras")
