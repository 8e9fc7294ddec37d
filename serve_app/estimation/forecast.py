"""When the jobs of this process will be done, and what a new one would meet.

The order is the engine's, as far as it can be foreseen: classes of priority one after the other, within one the tenants
share the device, then the shapes, and within these goes first what is due first. A stage does as many device seconds
a second as it did of late. Jobs of other routers aren't seen: they make this router's part of the stages slower, which
is measured. Knows attempts and clocks; no store, no stages.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from deployments.engine.scheduling.batcher import STRETCH
from serve_app.estimation.cost_model import Stage, StageWork, WorkModel
from serve_app.estimation.pace import Mean, Pace
from serve_app.jobs.attempt import Attempt
from serve_app.jobs.db.snapshot_rows import ImageStage
from serve_app.jobs.generation_executor import DrawnImage, LaneProgress
from serve_app.planning.operations import Operation, OperationPlan
from serve_app.planning.plan import PRIORITIES

# how long what is known of all jobs' work is good for: it is asked for at every step of every job
_FRESH_S = 0.25


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a new job would meet.

    work_s: device seconds that it takes; None while nobody knows, then start_s is 0.
    start_s: seconds until its first step. first_end_s: until a job that is here is done, None while nobody knows.
    rate, tenant_rate: device seconds of work that are done a second, of all jobs and of the tenant's.
    """

    work_s: float | None
    start_s: float
    first_end_s: float | None
    rate: float
    tenant_rate: float


@dataclass(frozen=True, slots=True)
class _Part:
    """What is left of a job in one stage. shape: what lanes that share a step have in common. lane_s: of one image."""

    shape: tuple[str, int, int]
    device_s: float
    lane_s: float


@dataclass(frozen=True, slots=True)
class _Load:
    """What is left of a job. due: as the engine orders lanes of equal rank, monotonic seconds."""

    priority: int
    tenant: str
    due: float
    parts: Mapping[str, _Part]


class QueueForecast:
    """attempts: of this process, by job, in the order of their acceptance; looked at, never changed. work: learns."""

    def __init__(
        self, attempts: Mapping[str, Attempt], work: WorkModel, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._attempts = attempts
        self._clock = clock
        self._work = work
        self._paces: defaultdict[str, Pace] = defaultdict(Pace)
        self._busy: Counter[str] = Counter()  # images that are in a stage now
        self._head, self._tail = Mean(), Mean()
        self._loads: dict[str, _Load] = {}
        self._loaded_at = float("-inf")

    def began(self, attempt: Attempt) -> None:
        """A job has come."""
        self._count(attempt, +1)
        self._loaded_at = float("-inf")

    def goes_on(self, attempt: Attempt, stored: Mapping[ImageStage, bytes]) -> None:
        """A job that has come is as far as its owner before had kept."""
        self._count(attempt, -1)
        attempt.go_on_from(stored)
        self._count(attempt, +1)
        self._loaded_at = float("-inf")

    def moved(self, attempt: Attempt, event: LaneProgress) -> None:
        """A lane took a step."""
        self._count(attempt, -1)
        cost = attempt.moved(event, self._clock())
        self._count(attempt, +1)
        stage = attempt.plan.stages[event.stage]
        if cost.share:
            self._work.stepped(attempt.generation, stage, cost.share, device_s=cost.device_s, step_s=cost.step_s)
        self._paces[stage.stage].worked(cost.device_s, self._clock())
        if not self._busy[stage.stage]:
            self._paces[stage.stage].idle()

    def waited(self, attempt: Attempt, seconds: float) -> None:
        """A job took its first step so long after it was accepted."""
        if attempt.alone:
            self._head.add(seconds)

    def drew(self, attempt: Attempt, image: DrawnImage) -> None:
        """An image of a job is finished."""
        stage = attempt.plan.stages[-1]
        attempt.drew(image.decode_s + image.between_s)
        if image.decode_s:
            self._work.decoded(attempt.generation, stage, image.decode_s)
        if self._busy[stage.stage]:
            self._paces[stage.stage].worked(image.decode_s, self._clock())
        self._tail.add(max(0.0, self._clock() - attempt.moved_at - image.decode_s))

    def ended(self, attempt: Attempt) -> None:
        """A job has left."""
        self._count(attempt, -1)
        for stage in attempt.plan.stages:
            if not self._busy[stage.stage]:
                self._paces[stage.stage].idle()
        self._loaded_at = float("-inf")

    def position(self, job_id: str) -> int:
        """Its place among the jobs here that wait for their first step, 1 being next; 0 if it doesn't wait."""
        mine = self._attempts.get(job_id)
        if mine is None or mine.first_step_s is not None:
            return 0
        place, seen = 1, False
        for other in self._attempts.values():
            seen |= other is mine
            if other is mine or other.first_step_s is not None:
                continue
            mine_rank, other_rank = _rank(mine.generation), _rank(other.generation)
            place += other_rank > mine_rank or (other_rank == mine_rank and not seen)
        return place

    def eta_s(self, job_id: str) -> float | None:
        """Seconds until it is done; None while nobody knows, and for a job that isn't here."""
        loads = self._all()
        mine = loads.get(job_id)
        if mine is None:
            return None
        at = 0.0 if self._attempts[job_id].first_step_s is not None else self._head.value
        for stage, part in mine.parts.items():
            work_s = _until(stage, part.device_s, mine, loads.values())
            at = max(at + part.lane_s, work_s / self._rate(stage))
        return at + self._tail.value

    def first_eta_s(self) -> float | None:
        """Seconds until the first of the jobs here is done; None while nobody knows, and where there is none."""
        first = next(iter(self._attempts), None)
        return None if first is None else self.eta_s(first)

    def left_s(self, attempt: Attempt) -> float:
        """Device seconds that a job would still take; 0 while nobody knows."""
        load = self._load(attempt)
        return 0.0 if load is None else sum(part.device_s for part in load.parts.values())

    def forecast(self, generation: Operation, plan: OperationPlan, tenant: str) -> Forecast:
        """What a job would meet that came now."""
        loads = self._all()
        busy = [stage for stage, images in self._busy.items() if images]
        rate = sum(self._rate(stage) for stage in busy) or 1.0
        tenants = {load.tenant for load in loads.values()} | {tenant}
        known = self._work.predict(generation, plan.stages)
        work_s = None if known is None else generation.n * sum(one.device_s for one in known)
        start_s = 0.0
        if known is not None:
            new = self._load_of(generation, plan, tenant, known, [1.0] * len(known), [generation.n] * len(known))
            stage = plan.stages[0].stage
            start_s = _until(stage, 0.0, new, loads.values()) / self._rate(stage)
        return Forecast(
            work_s=work_s,
            start_s=start_s,
            first_end_s=self.first_eta_s(),
            rate=rate,
            tenant_rate=rate / len(tenants),
        )

    def _rate(self, stage: str) -> float:
        """Device seconds a second; until it is measured, those of one device that is never idle."""
        pace = self._paces.get(stage)
        return (None if pace is None else pace.rate) or 1.0

    def _count(self, attempt: Attempt, by: int) -> None:
        for stage in attempt.images_at():
            self._busy[stage] += by

    def _all(self) -> Mapping[str, _Load]:
        now = self._clock()
        if now - self._loaded_at > _FRESH_S:
            found = ((job_id, self._load(attempt)) for job_id, attempt in self._attempts.items())
            self._loads = {job_id: load for job_id, load in found if load is not None}
            self._loaded_at = now
        return self._loads

    def _load(self, attempt: Attempt) -> _Load | None:
        generation, stages = attempt.generation, attempt.plan.stages
        known = self._work.predict(generation, stages)
        if known is None:
            return None
        slowest, images = attempt.left()
        return self._load_of(
            generation, attempt.plan, attempt.job.tenant, known, slowest, images, accepted=attempt.accepted
        )

    def _load_of(
        self,
        generation: Operation,
        plan: OperationPlan,
        tenant: str,
        known: Iterable[StageWork],
        slowest: Iterable[float],
        images: Iterable[float],
        accepted: float | None = None,
    ) -> _Load:
        """slowest: of each stage, what is left of the image that is least far (0..1). images: of all together."""
        parts: dict[str, _Part] = {}
        stages: Sequence[Stage] = plan.stages
        for stage, one, least, all_s in zip(stages, known, slowest, images, strict=True):
            before = parts.get(stage.stage)  # a second pass has its first one's stage
            parts[stage.stage] = _Part(
                (stage.checkpoint, stage.drawn(generation).width, stage.drawn(generation).height),
                all_s * one.device_s + (before.device_s if before else 0.0),
                least * one.lane_s + (before.lane_s if before else 0.0),
            )
        whole = sum(one.device_s for one in known)
        due = (self._clock() if accepted is None else accepted) + STRETCH * whole
        return _Load(_rank(generation), tenant, due, parts)


def _rank(generation: Operation) -> int:
    return PRIORITIES[generation.priority]


def _until(stage: str, own_s: float, mine: _Load, loads: Iterable[_Load]) -> float:
    """Device seconds of the stage until `own_s` of mine are done."""
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
