"""The LoRAs that requests may name."""

from pathlib import Path

from deployments.engine.adapters.lora_keys import check_keys
from deployments.engine.checkpoints.files import read_header
from deployments.engine.checkpoints.weight_folder import WeightFolder
from deployments.engine.errors import LoraRefused


class LoraFolder(WeightFolder[Path]):
    """LoRAs by name; an entry is its file, whose keys are known ones."""

    kind, field, refusal = "LoRA", "loras", LoraRefused

    def _describe(self, name: str, path: Path) -> Path:
        check_keys(read_header(path).tensors)
        return path
