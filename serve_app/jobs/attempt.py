"""One attempt at a job in this process: its progress, and whether it must stop."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice

from deployments.engine.lanes.snapshot import LaneSnapshot
from deployments.engine.types import Detections
from serve_app.estimation.cost_model import Stage, planned_steps
from serve_app.jobs.generation_executor import LaneProgress
from serve_app.jobs.image_finisher import DrawnImage
from serve_app.jobs.job import ImageStage, Job, JobProgress
from serve_app.jobs.job_snapshots import JobSnapshots
from serve_app.planning.plan import OperationPlan
from serve_app.schemas.resolved import Operation


class Stop(Enum):
    """Why an attempt stops early: the client cancelled, another process owns the job, this process ends."""

    CANCEL = "cancel"
    LOST = "lost"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a lane's latest steps; seconds as in Progress.

    `share` of the stage's steps, 0..1; 0 for a lane that has just begun, when the steps of the seconds are unknown.
    """

    share: float
    device_s: float
    step_s: float


@dataclass(frozen=True, slots=True)
class _Part:
    """One image in one stage: UNet evaluations done and planned, and their cost."""

    step: int
    steps: int
    device_s: float = 0.0
    step_s: float = 0.0

    @property
    def left(self) -> float:
        return 1 - self.step / self.steps if self.steps else 0.0  # 0 of a detail that isn't there


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt at a job.

    Attributes:
        alone: whether no other job was here when it came.
        accepted: when it came here, monotonic seconds.
        fence: of its claim; None before.
        stop: why it must end early; None if it needn't.
        work: draws the images.
        eta_s: seconds that it was expected to take when it came; None if nobody knew, or it was somebody's before.
        first_step_s: seconds from the job's acceptance to its first step; None before.
        moved_at: the latest step, monotonic seconds.
        unsaved: whether its progress has changed since it was stored.
        snapshots: of its images.
    """

    job: Job
    plan: OperationPlan
    alone: bool = False
    accepted: float = 0.0
    fence: int | None = None
    stop: Stop | None = None
    work: asyncio.Task[list[DrawnImage]] | None = None
    eta_s: float | None = None
    first_step_s: float | None = None
    moved_at: float = 0.0
    unsaved: bool = False
    snapshots: JobSnapshots = field(default_factory=JobSnapshots)
    _images_done: int = 0
    _finish_s: float = 0.0  # of the device, for what is no lane's progress
    _parts: dict[ImageStage, _Part] = field(init=False)

    def __post_init__(self) -> None:
        stages: Sequence[Stage] = self.plan.stages
        images = range(self.operation.n)
        self._parts = {
            (image, number): _Part(0, planned_steps(stage) if stage.expected else 0)
            for image in images
            for number, stage in enumerate(stages)
        }

    @property
    def operation(self) -> Operation:
        """The job's operation."""
        return self.plan.operation

    @property
    def deadline(self) -> float:
        """When the job fails if it isn't done; monotonic seconds."""
        return self.accepted + self.operation.timeout_s

    @property
    def progress(self) -> JobProgress:
        """The sum over all images and stages."""
        parts = self._parts.values()
        return JobProgress(
            sum(part.step for part in parts),
            sum(part.steps for part in parts),
            self._images_done,
            self._finish_s + sum(part.device_s for part in parts),
        )

    def left(self) -> tuple[list[float], list[float]]:
        """What is left of each stage: of its slowest image (0..1), and of all images (0..n)."""
        numbers = range(len(self.plan.stages))
        left = [[self._parts[image, stage].left for image in range(self.operation.n)] for stage in numbers]
        return [max(images) for images in left], [sum(images) for images in left]

    def images_at(self) -> Iterator[str]:
        """The key of the stage that each unfinished image is in."""
        stages: Sequence[Stage] = self.plan.stages
        for image in range(self.operation.n):
            unfinished = (stage.stage for number, stage in enumerate(stages) if self._parts[image, number].left)
            yield from islice(unfinished, 1)

    def go_on_from(self, stored: Mapping[ImageStage, bytes]) -> None:
        """Take over the snapshots of earlier owners; they don't count as work of this attempt."""
        stages: Sequence[Stage] = self.plan.stages
        for where, part in self.snapshots.restore(stored).items():
            if isinstance(part, Detections):
                continue  # the executor goes on from them
            planned = planned_steps(stages[where[1]])
            if isinstance(part, LaneSnapshot):
                self._parts[where] = _Part(part.step, max(part.step, planned), part.device_s, part.step_s)
            else:
                self._parts[where] = _Part(planned, planned, part.timings.device_s)
            self.unsaved = True

    def moved(self, event: LaneProgress, now: float) -> Cost:
        """Note a lane's step; returns the cost of the steps since its last report."""
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
        """Note a finished image; `device_s` for decoding and all else that no lane's progress counts."""
        self._images_done += 1
        self._finish_s += device_s
        self.unsaved = True

    def end(self, why: Stop) -> None:
        """Stop the attempt; its lanes leave at the next step. The first reason counts."""
        self.stop = self.stop or why
        if self.work is not None:
            self.work.cancel()
