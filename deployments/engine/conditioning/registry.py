"""All kinds of conditioning, and calls to those that a request uses."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from deployments.engine.checkpoints.denoiser_weights import DenoiserWeights
from deployments.engine.conditioning.controlnet import Controlnets
from deployments.engine.conditioning.controlnet_files import ControlnetFinder
from deployments.engine.conditioning.controlnet_weights import ControlnetTrace
from deployments.engine.conditioning.freeu import free_u
from deployments.engine.conditioning.ip_adapter import References, ReferenceTrace
from deployments.engine.conditioning.ip_adapter_files import IpAdapterFinder
from deployments.engine.conditioning.protocol import (
    Conditioner,
    ConditioningFiles,
    Finder,
    LaneCondition,
    Timeline,
)
from deployments.engine.config import ConditioningSettings, EngineSettings
from deployments.engine.device import Device
from deployments.engine.memory.footprint import StepTrace
from deployments.engine.memory.weight_pool import DeviceWeights
from deployments.engine.types import Conditioning, DenoiseRequest


class _Kind(NamedTuple):
    """The classes of a kind.

    Attributes:
        section: its field of ConditioningSettings.
        finder: takes that section.
        conditioner: takes the bytes of the device for its weights, the device, and the engine's settings.
        trace: takes nothing.
    """

    section: str
    finder: Callable[[Any], Finder]
    conditioner: Callable[[int, Device, EngineSettings], Conditioner]
    trace: Callable[[], StepTrace]


# by the field of DenoiseRequest that names its files
_KINDS = {
    "controls": _Kind("controlnets", ControlnetFinder, Controlnets, ControlnetTrace),
    "references": _Kind("ip_adapters", IpAdapterFinder, References, ReferenceTrace),
}


class ConditioningFinder:
    """The files of all kinds, from any thread."""

    def __init__(self, settings: ConditioningSettings) -> None:
        """Raises CheckpointError if a folder doesn't exist."""
        self._finders = {field: kind.finder(getattr(settings, kind.section)) for field, kind in _KINDS.items()}

    def names(self, request: DenoiseRequest) -> bool:
        """Whether the request uses any kind."""
        return any(getattr(request, field) for field in self._finders)

    def find(self, request: DenoiseRequest) -> ConditioningFiles:
        """The request's files, without kinds that it doesn't use. Raises InvalidRequest."""
        return {field: finder.find(request) for field, finder in self._finders.items() if getattr(request, field)}


class Conditioners:
    """All kinds on one device, in its thread."""

    def __init__(self, conditioning: ConditioningSettings, device: Device, settings: EngineSettings) -> None:
        self._kinds: Mapping[str, Conditioner] = {
            field: kind.conditioner(getattr(conditioning, kind.section).device_bytes, device, settings)
            for field, kind in _KINDS.items()
        }

    def has_room(self, files: ConditioningFiles, in_use: Collection[DeviceWeights]) -> bool:
        """Whether the files fit beside those that lanes use; True if they never fit."""
        return all(self._kinds[field].has_room(of_kind, in_use) for field, of_kind in files.items())

    def prepare(
        self,
        request: DenoiseRequest,
        text: Conditioning,
        files: ConditioningFiles,
        checkpoint: DenoiserWeights,
        timeline: Timeline,
        in_use: Collection[DeviceWeights],
    ) -> tuple[LaneCondition, ...]:
        """A lane's conditions, as Conditioner.prepare; and FreeU's, which has no files."""
        prepared: list[LaneCondition] = []
        for field, of_kind in files.items():
            prepared += self._kinds[field].prepare(request, text, of_kind, checkpoint, timeline, in_use)
        return *prepared, *free_u(request, checkpoint, timeline)


def step_traces(settings: ConditioningSettings) -> tuple[StepTrace, ...]:
    """The memory traces of the kinds that are switched on."""
    return tuple(kind.trace() for kind in _KINDS.values() if getattr(settings, kind.section).device_bytes)
