"""The replicas of a denoising stage, as they bound how fast its work is done: those that run, and those that may."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from deployments.config import StageSettings


@dataclass(frozen=True, slots=True)
class Fleet:
    """The replicas of a stage.

    Attributes:
        running: How many there are; None while nobody knows.
        most: How many there may be.
        startup_s: Seconds until one that was asked for works.
        target_work_s: Device seconds of work for which the autoscaler asks for one.
    """

    running: Callable[[], int | None]
    most: int
    startup_s: float
    target_work_s: float

    @classmethod
    def of(cls, settings: StageSettings, running: Callable[[], int | None]) -> "Fleet":
        """The fleet of a stage."""
        scaling = settings.autoscaling
        if scaling is None:
            return cls(running, settings.replicas, 0.0, 1.0)
        return cls(running, scaling.max_replicas, scaling.startup_s, scaling.target_work_s)

    def seconds_for(self, work_s: float, rate: float) -> float:
        """Seconds in which work is done, with the replicas that the autoscaler adds for it.

        Args:
            work_s: Device seconds.
            rate: Device seconds a second of the replicas that run.
        """
        running = self.running()
        if running is None:
            return work_s / rate
        wanted = max(1, running, min(self.most, math.ceil(work_s / self.target_work_s)))
        if running == 0:
            return self.startup_s + work_s / wanted if work_s else self.startup_s
        done_before_s = rate * self.startup_s
        if work_s <= done_before_s or wanted == running:
            return work_s / rate
        return self.startup_s + (work_s - done_before_s) / (rate * wanted / running)
