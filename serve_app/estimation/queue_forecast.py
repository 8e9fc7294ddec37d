"""When the jobs of this process will be done, and what a new one would meet.

Jobs are taken in the engine's order: by priority; within a priority the tenants share the device, then the shapes; and
within these by what is due first. A stage is assumed to keep its latest rate, in device seconds a second. Jobs of other
routers aren't seen; they lower the measured rate.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from deployments.engine.scheduling.batcher import STRETCH
from serve_app.estimation.cost_model import CostModel, Mean, Stage
from serve_app.estimation.fleet import Fleet
from serve_app.jobs.attempt import Attempt
from serve_app.jobs.generation_executor import LaneProgress
from serve_app.jobs.image_finisher import DrawnImage
from serve_app.planning.plan import PRIORITIES, OperationPlan
from serve_app.schemas.resolved import Operation

# how long the sum of all jobs' work is kept: every step of every job reads it
_FRESH_S = 0.25

# the time over which a stage's rate is measured, and how much of the rate the latest of them makes up
_WINDOW_S, _WINDOW_SHARE = 1.0, 0.3

# how much of the seconds before a job's first step, and after its last one, the latest job makes up
_EDGE_SHARE = 0.1


# what an image is taken to need while nobody has drawn one like it, where the autoscaler asks; device seconds
_UNKNOWN_S = 5.0

# work that is late asks for as many replicas as would do it in this time
_LEAST_LEFT_S = 1.0

NO_FLEETS: Mapping[str, Fleet] = {}


class StageDemand(NamedTuple):
    """A router's unfinished work for a stage; as deployments.demand.Demand has it."""

    work_s: float
    lanes: float
    replicas: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a new job would meet.

    Attributes:
        work_s: device seconds that it takes; None while unknown, then start_s is 0.
        start_s: seconds until its first step.
        first_end_s: seconds until a job that is here is done; None while unknown.
        rate: device seconds of work done a second, of all jobs.
        tenant_rate: likewise, of the tenant's jobs.
    """

    work_s: float | None
    start_s: float
    first_end_s: float | None
    rate: float
    tenant_rate: float


class Pace:
    """A stage's rate: device seconds of work done a second while it has any, about its number of busy replicas."""

    def __init__(self) -> None:
        self._mean = Mean(_WINDOW_SHARE)
        self._since: float | None = None
        self._done = 0.0
        self._elapsed = 0.0

    @property
    def rate(self) -> float:
        """Device seconds a second; until it is measured 1, one device that is never idle."""
        return self._mean.value or 1.0

    def worked(self, device_s: float, now: float) -> None:
        """Count `device_s` more of work as done by `now` (monotonic seconds)."""
        if self._since is not None:  # what came before the first report took an unknown time
            self._done += device_s
            self._elapsed += now - self._since
        self._since = now
        if self._elapsed >= _WINDOW_S:
            self._mean.add(self._done / self._elapsed)
            self._done = self._elapsed = 0.0

    def idle(self) -> None:
        """Don't count the time until the next report: the stage has nothing to do."""
        self._since = None


@dataclass(frozen=True, slots=True)
class _Part:
    """What is left of a job in one stage.

    Attributes:
        shape: checkpoint, width and height, which lanes that share a step have in common.
        device_s: of all its images.
        lane_s: seconds until its slowest image is done, if nothing else were there.
    """

    shape: tuple[str, int, int]
    device_s: float
    lane_s: float


@dataclass(frozen=True, slots=True)
class _Load:
    """What is left of a job, by stage. The engine orders lanes of equal priority by `due`, in monotonic seconds."""

    priority: int
    tenant: str
    due: float
    parts: Mapping[str, _Part]

    @property
    def device_s(self) -> float:
        """The sum over all stages."""
        return sum(part.device_s for part in self.parts.values())


class QueueForecast:
    """Forecasts from the attempts of this process.

    Args:
        attempts: by job, in the order of their acceptance; changed only by `moved` and `drew`.
        costs: what work costs; learns from the attempts.
        clock: monotonic seconds.
        fleets: the replicas of stages, by their keys; a stage that isn't there keeps those that it has.
    """

    def __init__(
        self,
        attempts: Mapping[str, Attempt],
        costs: CostModel,
        clock: Callable[[], float] = time.monotonic,
        fleets: Mapping[str, Fleet] = NO_FLEETS,
    ) -> None:
        self._attempts = attempts
        self._fleets = fleets
        self._clock = clock
        self._costs = costs
        self._paces: defaultdict[str, Pace] = defaultdict(Pace)
        self._head, self._tail = Mean(_EDGE_SHARE), Mean(_EDGE_SHARE)
        self._loads: dict[str, _Load] = {}
        self._loaded_at = float("-inf")

    def changed(self) -> None:
        """Note that a job has come, has left, or goes on from an earlier owner's snapshots."""
        self._loaded_at = float("-inf")
        self._rest_idle(self._paces)

    def moved(self, attempt: Attempt, event: LaneProgress) -> None:
        """Note that a lane took a step."""
        cost = attempt.moved(event, self._clock())
        stage = attempt.plan.stages[event.stage]
        if cost.share:
            self._costs.stepped(stage, cost.share, device_s=cost.device_s, step_s=cost.step_s)
        self._paces[stage.stage].worked(cost.device_s, self._clock())
        self._rest_idle([stage.stage])

    def waited(self, attempt: Attempt, seconds: float) -> None:
        """Note that a job took its first step so many seconds after it was accepted."""
        if attempt.alone:
            self._head.add(seconds)

    def drew(self, attempt: Attempt, image: DrawnImage) -> None:
        """Note that an image of a job is finished."""
        attempt.drew(image.decode_s + image.between_s)
        for number, seconds in image.decoded.items():
            stage = attempt.plan.stages[number]
            self._costs.decoded(stage, seconds)
            if self._has_image_in(stage.stage):
                self._paces[stage.stage].worked(seconds, self._clock())
        self._tail.add(max(0.0, self._clock() - attempt.moved_at - image.decode_s))

    def position(self, job_id: str) -> int:
        """The job's place among those here that wait for their first step, 1 being next; 0 if it doesn't wait."""
        waiting = [attempt for attempt in self._attempts.values() if attempt.first_step_s is None]
        waiting.sort(key=lambda attempt: -_rank(attempt.operation))  # those of one rank stay in their order
        return next((place for place, attempt in enumerate(waiting, 1) if attempt.job.id == job_id), 0)

    def eta_s(self, job_id: str) -> float | None:
        """Seconds until the job is done; None while unknown, and for a job that isn't here."""
        loads = self._all_loads()
        load = loads.get(job_id)
        if load is None:
            return None
        end_s = 0.0 if self._attempts[job_id].first_step_s is not None else self._head.value
        for stage, part in load.parts.items():
            work_s = _until(stage, part.device_s, load, loads.values())
            end_s = max(end_s + part.lane_s, self._seconds_for(stage, work_s))
        return end_s + self._tail.value

    def first_eta_s(self) -> float | None:
        """Seconds until the first of the jobs here is done; None while unknown, and if there is none."""
        first = next(iter(self._attempts), None)
        return None if first is None else self.eta_s(first)

    def left_s(self, attempt: Attempt) -> float:
        """Device seconds that a job still takes; 0 while unknown."""
        load = self._load(attempt.plan, attempt.job.tenant, attempt.accepted, *attempt.left())
        return 0.0 if load is None else load.device_s

    def forecast(self, plan: OperationPlan, tenant: str) -> Forecast:
        """What a job would meet if it came now."""
        loads = self._all_loads()
        rate = sum(self._paces[stage].rate for stage in self._busy()) or 1.0
        tenants = {load.tenant for load in loads.values()} | {tenant}
        stages: Sequence[Stage] = plan.stages
        slowest = [float(stage.expected) for stage in stages]
        images = [plan.operation.n * expected for expected in slowest]
        new = self._load(plan, tenant, self._clock(), slowest, images)
        first = plan.stages[0].stage
        return Forecast(
            work_s=None if new is None else new.device_s,
            start_s=0.0 if new is None else self._seconds_for(first, _until(first, 0.0, new, loads.values())),
            first_end_s=self.first_eta_s(),
            rate=rate,
            tenant_rate=rate / len(tenants),
        )

    def demand(self, stage: str) -> StageDemand:
        """The unfinished work of all jobs here for a stage, whatever part of it the replicas hold."""
        now = self._clock()
        work_s = lanes = replicas = 0.0
        loads = self._all_loads()
        attempts = sorted(self._attempts.items(), key=lambda item: item[1].deadline)
        for job_id, attempt in attempts:
            stages: Sequence[Stage] = attempt.plan.stages
            left = attempt.left()[1]
            images = sum(left[number] for number, planned in enumerate(stages) if planned.stage == stage)
            load = loads.get(job_id)
            part = None if load is None else load.parts.get(stage)
            lanes += images
            work_s += _UNKNOWN_S * images if part is None else part.device_s
            replicas = max(replicas, work_s / max(_LEAST_LEFT_S, attempt.deadline - now))
        return StageDemand(work_s, lanes, replicas)

    def _seconds_for(self, stage: str, work_s: float) -> float:
        rate = self._paces[stage].rate
        fleet = self._fleets.get(stage)
        return work_s / rate if fleet is None else fleet.seconds_for(work_s, rate)

    def _has_image_in(self, stage: str) -> bool:
        """Whether an image is in the stage. Called at every step of every job, so it stops at the first one."""
        return any(stage in attempt.images_at() for attempt in self._attempts.values())

    def _busy(self) -> set[str]:
        """The stages that an image is in."""
        return {stage for attempt in self._attempts.values() for stage in attempt.images_at()}

    def _rest_idle(self, stages: Iterable[str]) -> None:
        """Don't count towards a stage's rate the time in which it has nothing to do."""
        for stage in stages:
            if not self._has_image_in(stage):
                self._paces[stage].idle()

    def _all_loads(self) -> Mapping[str, _Load]:
        now = self._clock()
        if now - self._loaded_at > _FRESH_S:
            loads = {
                job_id: self._load(one.plan, one.job.tenant, one.accepted, *one.left())
                for job_id, one in self._attempts.items()
            }
            self._loads = {job_id: load for job_id, load in loads.items() if load is not None}
            self._loaded_at = now
        return self._loads

    def _load(
        self,
        plan: OperationPlan,
        tenant: str,
        accepted: float,
        slowest: Sequence[float],
        images: Sequence[float],
    ) -> _Load | None:
        """What is left of a job; None while its costs are unknown.

        Args:
            plan: of the job.
            tenant: of the job.
            accepted: monotonic seconds.
            slowest, images: by stage, as in `Attempt.left`.
        """
        stages: Sequence[Stage] = plan.stages
        costs = self._costs.predict(stages)
        if costs is None:
            return None
        parts: dict[str, _Part] = {}
        for stage, cost, image_left, images_left in zip(stages, costs, slowest, images, strict=True):
            before = parts.get(stage.stage)  # a second pass has its first one's stage
            parts[stage.stage] = _Part(
                (stage.checkpoint, stage.width, stage.height),
                images_left * cost.device_s + (before.device_s if before else 0.0),
                image_left * cost.lane_s + (before.lane_s if before else 0.0),
            )
        expected = [cost.device_s for stage, cost in zip(stages, costs, strict=True) if stage.expected]
        due = accepted + STRETCH * sum(expected)
        return _Load(_rank(plan.operation), tenant, due, parts)


def _rank(operation: Operation) -> int:
    return PRIORITIES[operation.priority]


def _until(stage: str, own_s: float, mine: _Load, loads: Iterable[_Load]) -> float:
    """Device seconds that the stage works until `own_s` of `mine` are done."""
    before = 0.0
    through = own_s
    shapes: defaultdict[tuple[str, int, int], float] = defaultdict(float)
    tenants: defaultdict[str, float] = defaultdict(float)
    for load in loads:
        part = load.parts.get(stage)
        if load is mine or part is None or load.priority < mine.priority:
            continue
        if load.priority > mine.priority:
            before += part.device_s
        elif load.tenant != mine.tenant:
            tenants[load.tenant] += part.device_s
        elif part.shape != mine.parts[stage].shape:
            shapes[part.shape] += part.device_s
        elif load.due <= mine.due:
            through += part.device_s
    # whoever shares the device gets no more of it meanwhile than mine do
    through += sum([min(left, through) for left in shapes.values()])
    through += sum([min(left, through) for left in tenants.values()])
    return before + through
