"""The sums that an attempt keeps are those of its parts."""

from serve_app.generation import GenerationRequest, resolve
from serve_app.jobs.attempt import Attempt
from serve_app.jobs.drawing import LaneProgress
from serve_app.jobs.job import Job, JobProgress, utc_now
from serve_app.jobs.states import JobState
from serve_app.plan import plan
from serve_app.settings import Settings

PIXELS = 256 * 256


def attempt(settings: Settings, **fields: object) -> Attempt:
    generation = resolve(GenerationRequest.parse({"prompt": "x", **fields}), settings, drawn_seed=1)
    now = utc_now()
    job = Job(
        "0" * 32, "", JobState.QUEUED, {}, None, None, None, 0, 0, 0, now, None, None, None, 0, None, None, 0, False
    )
    return Attempt(job, generation, plan(generation, settings))


def test_a_stage_that_has_not_begun_counts_by_its_share(demo_settings: Settings) -> None:
    one = attempt(demo_settings, model="demo-sdxl", n=2, steps=20)
    assert one.progress == JobProgress(0, 40, 0)
    assert one.pixel_steps_left == 40 * PIXELS


def test_steps_add_up_over_images_and_stages(demo_settings: Settings) -> None:
    one = attempt(demo_settings, model="demo-sdxl", n=2, steps=20)
    assert one.moved(LaneProgress(0, 0, 3, 16, None)) == 3 * PIXELS
    assert one.moved(LaneProgress(1, 0, 16, 16, None)) == 16 * PIXELS
    one.drew()
    assert one.progress == JobProgress(19, 40, 1)
    # a sampler of second order evaluates more often than it has steps: the stage knows better
    assert one.moved(LaneProgress(1, 1, 1, 7, None)) == PIXELS
    assert one.progress == JobProgress(20, 43, 1)
    assert one.pixel_steps_left == 23 * PIXELS


def test_a_lane_that_began_anew_goes_back_and_adds_no_work(demo_settings: Settings) -> None:
    one = attempt(demo_settings, steps=20)
    assert one.moved(LaneProgress(0, 0, 9, 20, None)) == 9 * PIXELS
    assert one.moved(LaneProgress(0, 0, 1, 20, None)) == 0
    assert one.progress == JobProgress(1, 20, 0)
