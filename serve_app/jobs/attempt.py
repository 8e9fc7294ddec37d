"""One job in this process, from its start here to its end here: how far it is, and whether it is to stop.

Plain bookkeeping; knows no store and no stages.
"""

import asyncio
from dataclasses import dataclass, field
from enum import Enum

from serve_app.generation import ResolvedGeneration
from serve_app.jobs.drawing import DrawnImage, LaneProgress
from serve_app.jobs.job import Job, JobProgress
from serve_app.plan import Plan


class Stop(Enum):
    """Why an attempt is stopped before its end: the client's wish, another owner, this process's own end."""

    CANCEL = "cancel"
    LOST = "lost"
    RELEASE = "release"


@dataclass(slots=True, eq=False)
class Attempt:
    """One attempt at a job.

    fence: of its claim, None before. stop: why it is to end early. work: draws the images.
    first_step_s: seconds from the job's acceptance to its first step, None before.
    unsaved: it moved on since its progress was last written to the store.
    """

    job: Job
    generation: ResolvedGeneration
    plan: Plan
    fence: int | None = None
    stop: Stop | None = None
    work: asyncio.Task[list[DrawnImage]] | None = None
    first_step_s: float | None = None
    unsaved: bool = False
    _images_done: int = 0
    # (image, stage) -> UNet evaluations done and planned; beside it their sums, for these are asked for all the time
    _parts: dict[tuple[int, int], tuple[int, int]] = field(init=False)
    _step: int = field(init=False, default=0)
    _steps: int = field(init=False)

    def __post_init__(self) -> None:
        # a stage that hasn't begun counts by its share of the schedule
        schedule = self.generation.steps
        planned = [
            max(1, round(schedule * (stage.denoising_end - stage.denoising_start))) for stage in self.plan.stages
        ]
        images = range(self.generation.n)
        self._parts = {(image, stage): (0, steps) for image in images for stage, steps in enumerate(planned)}
        self._steps = len(images) * sum(planned)

    @property
    def pixel_steps_left(self) -> float:
        """Work that is left, in UNet evaluations times pixels."""
        return (self._steps - self._step) * self.generation.width * self.generation.height

    @property
    def progress(self) -> JobProgress:
        """Over all images and stages."""
        return JobProgress(self._step, self._steps, self._images_done)

    def moved(self, event: LaneProgress) -> float:
        """A lane took a step; the answer is the work that is newly done (none by a lane that began anew)."""
        done, planned = self._parts[event.image, event.stage]
        self._parts[event.image, event.stage] = (event.step, event.steps)
        self._step += event.step - done
        self._steps += event.steps - planned
        self.unsaved = True
        return max(0, event.step - done) * self.generation.width * self.generation.height

    def drew(self) -> None:
        """An image is finished."""
        self._images_done += 1
        self.unsaved = True

    def end(self, why: Stop) -> None:
        """Stop it; its lanes leave at the next step. The first reason counts."""
        self.stop = self.stop or why
        if self.work is not None:
            self.work.cancel()
