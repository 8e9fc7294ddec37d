"""When jobs will be done, from costs and an order that are known: the engine's, as far as it can be foreseen."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from serve_app.config.settings import Settings
from serve_app.estimation.cost_model import CostModel
from serve_app.estimation.queue_forecast import Forecast, Pace, QueueForecast
from serve_app.jobs.attempt import Attempt
from serve_app.jobs.generation_executor import LaneProgress
from serve_app.jobs.job import Job, utc_now
from serve_app.jobs.job_snapshots import JobSnapshots
from serve_app.jobs.states import JobState
from serve_app.planning.plan import plan_generation
from serve_app.planning.resolve import resolve
from serve_app.schemas.generation_request import GenerationRequest
from serve_app.schemas.validation import validated
from tests.serve_app.jobs.test_job_snapshots import HANDED_OVER

# of a step at 256 x 256, in every stage
STEP_S = 0.1


@dataclass
class Queue:
    """Attempts under a forecast, and a clock that only the test moves."""

    settings: Settings
    now: float = 100.0
    attempts: dict[str, Attempt] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.forecasts = QueueForecast(self.attempts, CostModel(), lambda: self.now)

    def accept(self, tenant: str = "", **fields: Any) -> str:
        generation = resolve(
            validated(GenerationRequest, {"prompt": "x", "steps": 20, **fields}), self.settings, drawn_seed=1
        ).generation
        self.now += 0.001
        job_id = f"{len(self.attempts) + int(self.now * 1000):032x}"
        job = Job(
            job_id, tenant, JobState.QUEUED, {}, None, None, None, 0, 0, 0, utc_now(), None, None, None, 0, None, 0,
            False,
        )  # fmt: skip
        attempt = Attempt(job, plan_generation(generation, self.settings), not self.attempts, self.now)
        self.attempts[job_id] = attempt
        self.forecasts.changed()
        return job_id

    def step(self, job_id: str, steps: int, *, stage: int = 0, image: int = 0, sharing: int = 1) -> None:
        """A lane takes so many steps, of which it pays its share; two reports."""
        attempt = self.attempts[job_id]
        before = attempt._parts[image, stage]
        planned = before.steps
        for number in (1, steps - 1):
            before = attempt._parts[image, stage]
            self.now += number * STEP_S
            after = before.step + number
            device_s = before.device_s + number * STEP_S / sharing
            self.forecasts.moved(
                attempt,
                LaneProgress(image, stage, after, planned, None, device_s, before.step_s + number * STEP_S),
            )
        attempt.first_step_s = attempt.first_step_s or 0.0

    def end(self, job_id: str) -> None:
        del self.attempts[job_id]
        self.forecasts.changed()

    def draw(self, **fields: Any) -> None:
        """A whole job, so that its cost is known."""
        job_id = self.accept(**fields)
        for stage, _ in enumerate(self.attempts[job_id].plan.stages):
            self.step(job_id, self.attempts[job_id]._parts[0, stage].steps, stage=stage)
        self.end(job_id)

    def forecast(self, tenant: str = "", **fields: Any) -> Forecast:
        generation = resolve(
            validated(GenerationRequest, {"prompt": "x", "steps": 20, **fields}), self.settings, drawn_seed=1
        ).generation
        return self.forecasts.forecast(plan_generation(generation, self.settings), tenant)


@pytest.fixture
def queue(demo_settings: Settings) -> Queue:
    return Queue(demo_settings)


@pytest.fixture
def known(queue: Queue) -> Queue:
    """A job of 20 steps takes 2 s."""
    queue.draw()
    return queue


def test_nobody_knows_before_anything_was_drawn(queue: Queue) -> None:
    job_id = queue.accept()
    assert queue.forecasts.eta_s(job_id) is None
    assert queue.forecast() == Forecast(None, 0.0, None, 1.0, 1.0)
    assert queue.forecasts.eta_s("another router's") is None
    assert queue.forecasts.left_s(queue.attempts[job_id]) == 0.0


def test_a_job_that_goes_on_is_in_the_stage_where_its_owner_before_was(queue: Queue) -> None:
    job_id = queue.accept(model="demo-sdxl", refiner=True)
    assert queue.forecasts._busy() == {"sdxl_base"}
    snapshots = JobSnapshots()
    snapshots.put(0, 0, HANDED_OVER)
    queue.attempts[job_id].go_on_from(snapshots.pack(snapshots.unsaved(), 10**9))
    queue.forecasts.changed()
    assert queue.forecasts._busy() == {"sdxl_refiner"}
    queue.end(job_id)
    assert queue.forecasts._busy() == set()


def test_equal_jobs_are_done_one_after_the_other(known: Queue) -> None:
    made = [known.accept() for _ in range(4)]
    assert [known.forecasts.eta_s(job_id) for job_id in made] == pytest.approx([2, 4, 6, 8], rel=0.01)
    assert [known.forecasts.position(job_id) for job_id in made] == [1, 2, 3, 4]
    known.step(made[0], 10)
    assert [known.forecasts.eta_s(job_id) for job_id in made] == pytest.approx([1, 3, 5, 7], rel=0.01)
    assert [known.forecasts.position(job_id) for job_id in made] == [0, 1, 2, 3]
    assert known.forecasts.left_s(known.attempts[made[0]]) == pytest.approx(1.0, rel=0.01)
    coming = known.forecast(n=2)
    assert (coming.work_s, coming.start_s) == (pytest.approx(4, rel=0.01), pytest.approx(7, rel=0.01))
    assert coming.first_end_s == pytest.approx(1, rel=0.01)


def test_a_higher_priority_goes_first(known: Queue) -> None:
    normal, batch, urgent = known.accept(), known.accept(priority="batch"), known.accept(priority="interactive")
    assert [known.forecasts.position(job_id) for job_id in (urgent, normal, batch)] == [1, 2, 3]
    found = [known.forecasts.eta_s(job_id) for job_id in (urgent, normal, batch)]
    assert found == pytest.approx([2, 4, 6], rel=0.01)
    assert known.forecast(priority="batch").start_s == pytest.approx(6, rel=0.01)
    assert known.forecast(priority="interactive").start_s == pytest.approx(2, rel=0.01)


def test_a_tenant_with_little_work_does_not_wait_for_one_with_much(known: Queue) -> None:
    for _ in range(10):
        known.accept("greedy")
    modest = known.accept("modest")
    assert known.forecasts.eta_s(modest) == pytest.approx(4, rel=0.01), "every other second of the device is its own"
    assert known.forecast("another").tenant_rate == pytest.approx(known.forecast("another").rate / 3)


def test_shapes_take_turns_too(known: Queue) -> None:
    for _ in range(5):
        known.accept(width=512, height=512)  # 8 s each
    assert known.forecasts.eta_s(known.accept()) == pytest.approx(4, rel=0.01)


def test_a_short_job_overtakes_long_ones(known: Queue) -> None:
    long = known.accept(steps=50)
    short = known.accept(steps=10)
    assert known.forecasts.eta_s(short) == pytest.approx(1, rel=0.01)
    assert known.forecasts.eta_s(long) == pytest.approx(6, rel=0.01)


def test_sharing_steps_makes_images_cheaper_but_none_of_them_faster(queue: Queue) -> None:
    first = queue.accept()
    queue.step(first, 20, sharing=8)
    queue.end(first)
    made = [queue.accept() for _ in range(8)]
    assert queue.forecast().work_s == pytest.approx(0.25, rel=0.01)
    assert queue.forecasts.eta_s(made[0]) == pytest.approx(2, rel=0.01)


def test_a_stage_is_no_queue_for_another(queue: Queue) -> None:
    queue.draw()
    queue.draw(model="demo-sdxl")  # 1.6 s and 0.4 s
    for _ in range(5):
        queue.accept()
    first, second = queue.accept(model="demo-sdxl"), queue.accept(model="demo-sdxl")
    assert queue.forecasts.eta_s(first) == pytest.approx(2.0, rel=0.01)
    assert queue.forecasts.eta_s(second) == pytest.approx(3.6, rel=0.01)


def test_two_replicas_are_twice_as_fast(known: Queue) -> None:
    for _ in range(6):
        one, other = known.accept(), known.accept()
        for _ in range(4):
            known.step(one, 5)
            known.now -= 5 * STEP_S
            known.step(other, 5)
        known.end(one)
        known.end(other)
    made = [known.accept() for _ in range(4)]
    assert known.forecasts.eta_s(made[-1]) == pytest.approx(4, rel=0.3)
    assert known.forecast().rate == pytest.approx(2, rel=0.3)


def test_what_goes_before_and_after_the_steps_is_part_of_it(known: Queue) -> None:
    job_id = known.accept()
    known.forecasts.waited(known.attempts[job_id], 0.5)
    known.end(job_id)
    assert known.forecasts.eta_s(known.accept()) == pytest.approx(2.5, rel=0.01)


def drawn(pace: Pace, seconds: float, rate: float, start: float) -> float:
    """Work for some seconds in steps of a tenth; the time at the end."""
    for tenth in range(1, round(seconds * 10) + 1):
        pace.worked(rate / 10, start + tenth / 10)
    return start + seconds


def test_a_stage_that_was_never_measured_counts_as_one_device_that_is_never_idle() -> None:
    pace = Pace()
    assert pace.rate == 1.0
    pace.worked(50, 10.0)
    assert pace.rate == 1.0


def test_a_steady_pace_is_found() -> None:
    pace = Pace()
    drawn(pace, 10, rate=200, start=5.0)
    assert pace.rate == pytest.approx(200, rel=0.05)


def test_a_change_of_pace_is_followed() -> None:
    pace = Pace()
    now = drawn(pace, 5, rate=100, start=0.0)
    drawn(pace, 20, rate=400, start=now)
    assert pace.rate == pytest.approx(400, rel=0.1)


def test_idle_time_does_not_count() -> None:
    pace = Pace()
    now = drawn(pace, 5, rate=100, start=0.0)
    pace.idle()
    drawn(pace, 5, rate=100, start=now + 3600)
    assert pace.rate == pytest.approx(100, rel=0.1)


def test_much_short_work_adds_up_to_a_measurement() -> None:
    """Each piece is shorter than what a rate is measured over, with idle time behind it."""
    pace = Pace()
    for piece in range(40):
        drawn(pace, 0.3, rate=100, start=60.0 * piece)
        pace.idle()
    assert pace.rate == pytest.approx(100, rel=0.01)


def test_of_a_detail_one_part_is_expected_until_it_is_known(raw_settings: dict[str, Any], tmp_path: Path) -> None:
    raw_settings["detectors"] = {"folder": str(tmp_path)}
    queue = Queue(Settings.model_validate(raw_settings))
    queue.draw()
    plain = queue.forecast().work_s
    detail = {"detector": "faces", "strength": 0.5, "max_count": 3}
    assert plain == pytest.approx(20 * STEP_S)
    assert queue.forecast(details=[detail]).work_s == pytest.approx(30 * STEP_S)
    job_id = queue.accept(details=[detail])
    assert queue.forecasts.eta_s(job_id) == pytest.approx(30 * STEP_S)
    for stage in (2, 3):
        queue.forecasts.moved(queue.attempts[job_id], LaneProgress(0, stage, 0, 10, None))
    queue.forecasts.changed()
    assert queue.forecasts.eta_s(job_id) == pytest.approx(50 * STEP_S)
