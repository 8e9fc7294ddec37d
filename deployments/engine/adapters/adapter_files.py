"""The LoRAs and ControlNets that an engine's requests name: found, read and hashed in a thread of their own.

They have hundreds of MB, so lanes start when theirs are there while others go on. Knows files; nothing of lanes or
models.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from deployments.engine.adapters.lora_file import LoraFile, LoraFiles
from deployments.engine.conditioning.controlnet import ControlnetFile
from deployments.engine.conditioning.controlnet_folder import ControlnetFolder
from deployments.engine.config import ControlnetSettings, LoraSettings
from deployments.engine.types import DenoiseRequest


class AdapterFiles:
    """Of one engine's requests."""

    def __init__(self, loras: LoraSettings, controlnets: ControlnetSettings) -> None:
        """Raises CheckpointError if a folder isn't there."""
        self._loras = LoraFiles(loras)
        self._controlnets = ControlnetFolder(controlnets.folder)
        self._reader = ThreadPoolExecutor(1, "adapters", initializer=torch.set_num_threads, initargs=(1,))

    def loras(self, request: DenoiseRequest) -> "Future[tuple[LoraFile, ...]] | None":
        """The request's, in its order; None if it names none. The future raises LoraRefused."""
        return self._reader.submit(self._read_loras, request) if request.loras else None

    def controlnets(self, request: DenoiseRequest) -> "Future[tuple[ControlnetFile, ...]] | None":
        """The request's, in its order; None if it names none. The future raises ControlnetRefused."""
        return self._reader.submit(self._find_controlnets, request) if request.controls else None

    def _read_loras(self, request: DenoiseRequest) -> tuple[LoraFile, ...]:
        return tuple(self._loras.read(lora.name) for lora in request.loras)

    def _find_controlnets(self, request: DenoiseRequest) -> tuple[ControlnetFile, ...]:
        return tuple(ControlnetFile.of(self._controlnets.find(control.name)) for control in request.controls)
