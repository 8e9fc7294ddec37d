"""The LoRAs, conditionings and VAEs that requests name: found, read and hashed in a thread of their own.

They have hundreds of MB: a lane starts once its own are read, while others go on.
"""

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from deployments.engine.adapters.lora_file import LoraFiles
from deployments.engine.conditioning.registry import ConditioningFinder
from deployments.engine.config import ConditioningSettings, LoraSettings
from deployments.engine.lanes.lane import LaneFiles
from deployments.engine.types import DenoiseRequest
from deployments.engine.vae.folder import VaeFinder


class RequestFiles:
    """Reads the files of one engine's requests."""

    def __init__(self, loras: LoraSettings, conditioning: ConditioningSettings) -> None:
        """Raises CheckpointError if a folder doesn't exist."""
        self._loras = LoraFiles(loras)
        self._conditioning = ConditioningFinder(conditioning)
        self._vaes = VaeFinder(conditioning.vaes)
        self._reader = ThreadPoolExecutor(1, "request-files", initializer=torch.set_num_threads, initargs=(1,))

    def of(self, request: DenoiseRequest) -> "Future[LaneFiles] | None":
        """The request's files; None if it names none. The future raises InvalidRequest, which names the file."""
        if request.lora_names or request.vae is not None or self._conditioning.names(request):
            return self._reader.submit(self._read, request)
        return None

    def _read(self, request: DenoiseRequest) -> LaneFiles:
        loras = {name: self._loras.read(name) for name in request.lora_names}
        return LaneFiles(loras, self._conditioning.find(request), self._vaes.find(request))
