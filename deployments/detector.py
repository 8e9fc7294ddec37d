"""Finds what stands in finished images, so that it can be drawn over.

An image takes milliseconds and is looked at alone, so that what is found in it doesn't depend on others: a batch of
another size rounds differently, and with it an edge of a box.
"""

import asyncio
from dataclasses import replace

from deployments.batched_stage import BatchedStage
from deployments.config import DetectorStageSettings
from deployments.engine.config import DetectorSettings
from deployments.engine.detection.folder import DetectorFolder
from deployments.engine.types import DetectionRequest, Detections
from deployments.replica import StageDescription, without_garbage_collection


class Detector(BatchedStage):
    """The detectors of one folder, loaded when they are requested."""

    def __init__(self, settings: DetectorStageSettings, detectors: DetectorSettings) -> None:
        with without_garbage_collection():
            from deployments.engine.detection.detector import ResidentDetectors

        super().__init__(settings.device)
        self._folder = DetectorFolder(detectors.folder)
        self._detectors = ResidentDetectors(self._thread.device, self._thread.dtype)

    async def detect(self, request: DetectionRequest) -> Detections:
        """What stands in one image. Raises DetectorRefused, CheckpointError, NumericalFailure, EngineStopped."""
        source = await asyncio.to_thread(self._folder.find, request.detector)
        return await self._thread.run(self._detectors.detect, source, request.image, request.confidence)

    async def describe(self) -> StageDescription:
        """The replica's description, with the detectors in memory."""
        return replace(await super().describe(), checkpoints=self._detectors.names)
