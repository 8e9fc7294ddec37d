"""Draws over the details of a finished picture: what a detector finds in it, each part at a higher resolution.

Parts that don't touch each other are drawn at the same time; one that touches earlier ones waits for them, so that the
result doesn't depend on how fast they are. Pixels outside of the parts' masks stay as they are, to the byte.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deployments.engine.types import DenoiseResult, DetectionRequest, Detections, Pixels
from serve_app.estimation.cost_model import planned_steps
from serve_app.images.details import DrawnDetail, DrawnPart, PartFrame, chosen, frames_of
from serve_app.jobs.job_snapshots import JobSnapshots
from serve_app.observability.traces import JobTraces
from serve_app.planning.plan import Plan
from serve_app.stages.client import StageCalls


@dataclass(frozen=True, slots=True)
class DetailPass:
    """Draws over the details of one image.

    Attributes:
        image: its index in the plan.
        plan_steps: notes the steps that a stage will have; both by number.
        draw: draws a part by a stage of the plan: the stage's number, the picture around the part, its mask.
    """

    image: int
    calls: StageCalls
    plan: Plan
    snapshots: JobSnapshots
    traces: JobTraces
    plan_steps: Callable[[int, int], None]
    draw: Callable[[int, Pixels, Pixels], Awaitable[DenoiseResult]]

    async def drawn(self, picture: Pixels) -> tuple[Pixels, list[DrawnDetail]]:
        """The picture with its details, drawn one after the other. Raises DarkroomError."""
        details = []
        for number in range(len(self.plan.operation.details)):
            found = await self._found(number, picture)
            picture, parts = await self._drawn_over(number, found, picture)
            details.append(DrawnDetail(found.detector_hash, parts))
        return picture, details

    async def _found(self, number: int, picture: Pixels) -> Detections:
        """What counts for a detail; found once, so that the image goes on with the parts that it has begun."""
        key = len(self.plan.stages) + number
        known = self.snapshots.detections(self.image, key)
        if known is None:
            detail = self.plan.operation.details[number]
            with self.traces.span("detect", **{"darkroom.detector": detail.detector}):
                found = await self.calls.detect(DetectionRequest(detail.detector, picture, detail.confidence))
            height, width = picture.shape[:2]
            known = Detections(chosen(found.detections, detail, width * height), found.detector_hash)
            self.snapshots.put(self.image, key, known)
        return known

    async def _drawn_over(
        self, number: int, found: Detections, picture: Pixels
    ) -> tuple[Pixels, tuple[DrawnPart, ...]]:
        detail = self.plan.operation.details[number]
        height, width = picture.shape[:2]
        frames = await asyncio.to_thread(frames_of, found.detections, detail, (width, height))
        stages = [stage for stage, of_plan in enumerate(self.plan.stages) if of_plan.detail == number]
        for part, stage in enumerate(stages):
            of_plan, is_there = self.plan.stages[stage], part < len(frames)
            if is_there != of_plan.expected:
                self.plan_steps(stage, planned_steps(of_plan) if is_there else 0)
        canvas = np.array(picture)
        drawing: list[asyncio.Task[DrawnPart]] = []

        async def draw(frame: PartFrame, stage: int, earlier: Sequence[asyncio.Task[DrawnPart]]) -> DrawnPart:
            if earlier:
                await asyncio.wait(earlier)
            cut = await asyncio.to_thread(frame.cut, canvas)
            result = await self.draw(stage, cut.image, cut.mask)
            await asyncio.to_thread(cut.put_back, result, canvas)
            return DrawnPart(stage, frame.detections, result)

        async with asyncio.TaskGroup() as group:
            for frame, stage in zip(frames, stages, strict=False):
                touched = [task for task, other in zip(drawing, frames, strict=False) if frame.touches(other)]
                drawing.append(group.create_task(draw(frame, stage, touched)))
        return canvas, tuple(task.result() for task in drawing)
