"""The sums that an attempt keeps are those of its parts."""

import dataclasses
from pathlib import Path

from deployments.engine.config import DetectorSettings
from deployments.engine.types import DenoiseResult, Detections, StageTimings
from serve_app.config.settings import Settings
from serve_app.jobs.attempt import Attempt, Cost
from serve_app.jobs.generation_executor import LaneProgress
from serve_app.jobs.job import Job, JobProgress, utc_now
from serve_app.jobs.job_snapshots import JobSnapshots
from serve_app.jobs.states import JobState
from serve_app.planning.plan import plan_generation
from serve_app.planning.resolve import resolve
from serve_app.schemas.generation_request import GenerationRequest
from serve_app.schemas.validation import validated
from tests.serve_app.stand_in_stages import state_after


def attempt(settings: Settings, **fields: object) -> Attempt:
    generation = resolve(validated(GenerationRequest, {"prompt": "x", **fields}), settings, drawn_seed=1).generation
    now = utc_now()
    job = Job("0" * 32, "", JobState.QUEUED, {}, None, None, None, 0, 0, 0, now, None, None, None, 0, None, 0, False)
    return Attempt(job, plan_generation(generation, settings))


def test_a_stage_that_has_not_begun_counts_by_its_share(demo_settings: Settings) -> None:
    one = attempt(demo_settings, model="demo-sdxl", n=2, steps=20)
    assert one.progress == JobProgress(0, 40, 0)
    assert one.left() == ([1.0, 1.0], [2.0, 2.0])
    assert list(one.images_at()) == ["sdxl_base", "sdxl_base"]


def test_steps_add_up_over_images_and_stages(demo_settings: Settings) -> None:
    one = attempt(demo_settings, model="demo-sdxl", n=2, steps=20)
    one.moved(LaneProgress(0, 0, 4, 16, None, 0.5, 1.0), now=1.0)
    one.moved(LaneProgress(1, 0, 16, 16, None, 2.0, 4.0), now=2.0)
    assert list(one.images_at()) == ["sdxl_base", "sdxl_refiner"]
    one.drew(0.25)
    assert one.progress == JobProgress(20, 40, 1, 2.75)
    # a sampler of second order evaluates more often than it has steps: the stage knows better
    one.moved(LaneProgress(1, 1, 2, 8, None, 0.25, 0.5), now=3.0)
    assert one.progress == JobProgress(22, 44, 1, 3.0)
    assert one.left() == ([0.75, 1.0], [0.75, 1.75])
    assert one.moved_at == 3.0


def test_what_steps_cost_is_told_from_report_to_report(demo_settings: Settings) -> None:
    one = attempt(demo_settings, steps=20)
    assert one.moved(LaneProgress(0, 0, 1, 20, None, 0.5, 0.75), now=0.0) == Cost(0.0, 0.5, 0.75)
    assert one.moved(LaneProgress(0, 0, 6, 20, None, 1.5, 2.75), now=0.0) == Cost(0.25, 1.0, 2.0)


def test_a_lane_that_began_anew_goes_back_and_pays_anew(demo_settings: Settings) -> None:
    one = attempt(demo_settings, steps=20)
    one.moved(LaneProgress(0, 0, 9, 20, None, 4.5, 4.5), now=0.0)
    assert one.moved(LaneProgress(0, 0, 1, 20, None, 0.5, 0.5), now=0.0) == Cost(0.0, 0.5, 0.5)
    assert one.progress == JobProgress(1, 20, 0, 0.5)
    # one that was parked elsewhere goes on where it was, with an account of its own
    assert one.moved(LaneProgress(0, 0, 6, 20, None, 0.25, 0.25), now=0.0) == Cost(0.0, 0.25, 0.25)


def test_what_was_kept_is_done_and_is_no_new_work(demo_settings: Settings) -> None:
    one = attempt(demo_settings, model="demo-sdxl", n=2, steps=20)
    before = JobSnapshots()
    asked = one.plan.lane(one.plan.stages[0], lane_id="x")
    timings = StageTimings(0.0, 1.0, 0.0, 0.75)
    before.put(0, 0, DenoiseResult("x", 1, "demo-sdxl", "0", "best-effort", timings, "cpu", "float32"))
    before.put(0, 1, state_after(3, asked))
    before.put(1, 0, dataclasses.replace(state_after(11, asked), device_s=0.5, step_s=1.0))
    one.go_on_from(before.pack(before.unsaved(), 10**9))
    assert one.progress == JobProgress(16 + 3 + 11, 40, 0, 1.25)
    assert one.moved(LaneProgress(1, 0, 12, 16, None, 0.625, 1.25), now=0.0) == Cost(1 / 16, 0.125, 0.25)
    assert one.snapshots.unsaved() == {}


def test_of_a_detail_one_part_is_expected(demo_settings: Settings, tmp_path: Path) -> None:
    detecting = demo_settings.model_copy(update={"detectors": DetectorSettings(folder=str(tmp_path))})
    one = attempt(detecting, steps=20, details=[{"detector": "faces", "max_count": 3, "strength": 0.5}])
    assert one.progress == JobProgress(0, 20 + 10, 0)
    assert one.left() == ([1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0])
    one.moved(LaneProgress(0, 0, 20, 20, None, 1.0, 1.0), now=0.0)
    for stage in (2, 3):
        one.moved(LaneProgress(0, stage, 0, 10, None), now=0.0)  # three were found
    assert one.progress == JobProgress(20, 50, 0, 1.0)
    one.moved(LaneProgress(0, 1, 0, 0, None), now=0.0)  # or none
    assert list(one.images_at()) == ["sd15"]
    for stage in (2, 3):
        one.moved(LaneProgress(0, stage, 0, 0, None), now=0.0)
    assert one.progress == JobProgress(20, 20, 0, 1.0)
    assert list(one.images_at()) == []


def test_parts_of_a_detail_that_were_kept_are_done(demo_settings: Settings, tmp_path: Path) -> None:
    detecting = demo_settings.model_copy(update={"detectors": DetectorSettings(folder=str(tmp_path))})
    one = attempt(detecting, steps=20, details=[{"detector": "faces", "max_count": 2, "strength": 0.5}])
    before = JobSnapshots()
    timings = StageTimings(0.0, 1.0, 0.0, 0.75)
    for stage in (0, 2):
        before.put(0, stage, DenoiseResult("x", 1, "demo-sd15", "0", "best-effort", timings, "cpu", "float32"))
    before.put(0, 3, Detections((), "d" * 64))
    one.go_on_from(before.pack(before.unsaved(), 10**9))
    assert one.progress == JobProgress(20 + 10, 20 + 10 + 10, 0, 1.5)
    assert one.snapshots.detections(0, 3) == Detections((), "d" * 64)
