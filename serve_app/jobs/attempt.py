"""One attempt at a job in this process: how far it is, and whether it is to stop."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from deployments.engine.lanes.snapshot import LaneSnapshot
from serve_app.estimation.cost_model import Stage
from serve_app.jobs.generation_executor import LaneProgress
from serve_app.jobs.image_finisher import DrawnImage
from serve_app.jobs.job import ImageStage, Job, JobProgress
from serve_app.jobs.job_snapshots import JobSnapshots
from serve_app.planning.plan import OperationPlan
from serve_app.schemas.resolved import Operation


class Stop(Enum):
    """Why an attempt is stopped before its end: the client's wish, another owner, this process's own end."""

    CANCEL = "cancel"
    LOST = "lost"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a lane's latest steps have cost. device_s, step_s: as in Progress.

    share: of its stage's steps, 0..1; 0 where a lane has just begun: nobody can say which steps the seconds were for.
    """

    share: float
    device_s: float
    step_s: float


@dataclass(frozen=True, slots=True)
class _Part:
    """One image in one stage: UNet evaluations done and planned, what they have cost."""

    step: int
    steps: int
    device_s: float = 0.0
    step_s: float = 0.0

    @property
    def left(self) -> float:
        return 1 - self.step / self.steps


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt at a job.

    alone: no other job was here when it came. accepted: monotonic seconds when it came here.
    fence: of its claim, None before. stop: why it is to end early. work: draws the images.
    first_step_s: seconds from the job's acceptance to its first step, None before.
    moved_at: monotonic seconds of the latest step.
    unsaved: it moved on since its progress was last written to the store. snapshots: where its images are.
    """

    job: Job
    plan: OperationPlan
    alone: bool = False
    accepted: float = 0.0
    fence: int | None = None
    stop: Stop | None = None
    work: asyncio.Task[list[DrawnImage]] | None = None
    first_step_s: float | None = None
    moved_at: float = 0.0
    unsaved: bool = False
    snapshots: JobSnapshots = field(default_factory=JobSnapshots)
    _images_done: int = 0
    _finish_s: float = 0.0  # of the device, for what is no lane's progress
    _parts: dict[ImageStage, _Part] = field(init=False)

    def __post_init__(self) -> None:
        # a stage that hasn't begun counts by its share of the schedule
        stages: Sequence[Stage] = self.plan.stages
        planned = [max(1, round(stage.steps * stage.share)) for stage in stages]
        images = range(self.operation.n)
        self._parts = {(image, stage): _Part(0, steps) for image in images for stage, steps in enumerate(planned)}

    @property
    def operation(self) -> Operation:
        """What the job does."""
        return self.plan.operation

    @property
    def progress(self) -> JobProgress:
        """Over all images and stages."""
        parts = self._parts.values()
        return JobProgress(
            sum(part.step for part in parts),
            sum(part.steps for part in parts),
            self._images_done,
            self._finish_s + sum(part.device_s for part in parts),
        )

    def left(self) -> tuple[list[float], list[float]]:
        """What is left of each stage: of the image that is least far (0..1), and of all images (0..n)."""
        numbers = range(len(self.plan.stages))
        left = [[self._parts[image, stage].left for image in range(self.operation.n)] for stage in numbers]
        return [max(images) for images in left], [sum(images) for images in left]

    def images_at(self) -> Iterator[str]:
        """The stage that each image is in, by its key; images that are past the last one are left out."""
        stages: Sequence[Stage] = self.plan.stages
        for image in range(self.operation.n):
            unfinished = (stage.stage for number, stage in enumerate(stages) if self._parts[image, number].left)
            yield from list(unfinished)[:1]

    def go_on_from(self, stored: Mapping[ImageStage, bytes]) -> None:
        """Take over what owners before have kept; it isn't work that is newly done."""
        for where, part in self.snapshots.restore(stored).items():
            planned = self._parts[where].steps
            if isinstance(part, LaneSnapshot):
                self._parts[where] = _Part(part.step, max(part.step, planned), part.device_s, part.step_s)
            else:
                self._parts[where] = _Part(planned, planned, part.timings.device_s)
            self.unsaved = True

    def moved(self, event: LaneProgress, now: float) -> Cost:
        """A lane took a step; the answer is what it and those since the last report have cost."""
        where = event.image, event.stage
        before, after = self._parts[where], _Part(event.step, event.steps, event.device_s, event.step_s)
        self._parts[where] = after
        self.moved_at = now
        self.unsaved = True
        if not 0 < before.step < after.step or after.device_s < before.device_s:
            return Cost(0.0, after.device_s, after.step_s)
        return Cost(
            (after.step - before.step) / after.steps,
            after.device_s - before.device_s,
            after.step_s - before.step_s,
        )

    def drew(self, device_s: float) -> None:
        """An image is finished; decoding it, and what else is no lane's progress, took so much of the device."""
        self._images_done += 1
        self._finish_s += device_s
        self.unsaved = True

    def end(self, why: Stop) -> None:
        """Stop it; its lanes leave at the next step. The first reason counts."""
        self.stop = self.stop or why
        if self.work is not None:
            self.work.cancel()
