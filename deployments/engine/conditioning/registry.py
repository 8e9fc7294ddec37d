"""All kinds of conditioning, and calls to those that a request uses."""

from collections.abc import Collection, Mapping

from deployments.engine.checkpoints.denoiser_weights import DenoiserWeights
from deployments.engine.conditioning.controlnet import Controlnets
from deployments.engine.conditioning.controlnet_files import ControlnetFinder
from deployments.engine.conditioning.controlnet_weights import ControlnetTrace
from deployments.engine.conditioning.protocol import (
    Conditioner,
    ConditioningFiles,
    DeviceWeights,
    Finder,
    LaneCondition,
    Timeline,
)
from deployments.engine.config import ConditioningSettings, EngineSettings
from deployments.engine.device import Device
from deployments.engine.memory.footprint import StepTrace
from deployments.engine.types import DenoiseRequest


class ConditioningFinder:
    """The files of all kinds, from any thread."""

    def __init__(self, settings: ConditioningSettings) -> None:
        """Raises CheckpointError if a folder doesn't exist."""
        self._kinds: Mapping[str, Finder] = {"controls": ControlnetFinder(settings.controlnets)}

    def names(self, request: DenoiseRequest) -> bool:
        """Whether the request uses any kind."""
        return any(getattr(request, field) for field in self._kinds)

    def find(self, request: DenoiseRequest) -> ConditioningFiles:
        """The request's files, without kinds that it doesn't use. Raises InvalidRequest."""
        return {field: kind.find(request) for field, kind in self._kinds.items() if getattr(request, field)}


class Conditioners:
    """All kinds on one device, in its thread."""

    def __init__(self, conditioning: ConditioningSettings, device: Device, settings: EngineSettings) -> None:
        self._kinds: Mapping[str, Conditioner] = {
            "controls": Controlnets(conditioning.controlnets.device_bytes, device, settings)
        }

    def has_room(self, files: ConditioningFiles, in_use: Collection[DeviceWeights]) -> bool:
        """Whether the files fit beside those that lanes use; True if they never fit."""
        return all(self._kinds[field].has_room(of_kind, in_use) for field, of_kind in files.items())

    def prepare(
        self,
        request: DenoiseRequest,
        files: ConditioningFiles,
        checkpoint: DenoiserWeights,
        timeline: Timeline,
        in_use: Collection[DeviceWeights],
    ) -> tuple[LaneCondition, ...]:
        """A lane's conditions, as Conditioner.prepare."""
        return tuple(
            condition
            for field, of_kind in files.items()
            for condition in self._kinds[field].prepare(request, of_kind, checkpoint, timeline, in_use)
        )


def step_traces(settings: ConditioningSettings) -> tuple[StepTrace, ...]:
    """The memory traces of the kinds that are switched on."""
    return (ControlnetTrace(),) if settings.controlnets.device_bytes else ()
