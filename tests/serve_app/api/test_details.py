"""A request with details, from what is found in its picture to what is drawn over and said of it; what is refused."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deployments.engine.types import DenoiseRequest
from serve_app.config.settings import Settings
from serve_app.images.infotext import infotext_of
from serve_app.jobs.states import JobState
from serve_app.schemas.manifest import Manifest
from serve_app.stages.client import Stages
from tests.detectors import tiny_network, write_detector
from tests.serve_app.api.test_from_image import lanes_of
from tests.serve_app.front import Front, front, until
from tests.serve_app.images.manifest_files import read_manifest
from tests.serve_app.images.pictures import gradient, sent, square
from tests.serve_app.stand_in_stages import FOUND

EXACT = {"dilation": 0, "blur": 0, "padding": 0}
APART = FOUND["apart"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "detectors"
    made.mkdir()
    for name in ("apart", "touching", "nothing", "lost-one"):
        write_detector(made / f"{name}.safetensors", tiny_network())
    (made / "face_yolov8n.pt").write_bytes(b"\x80\x02")
    return made


@pytest.fixture
def detecting(raw_settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    raw_settings["detectors"] = {"folder": str(folder)}
    raw_settings["jobs"] |= {"state_every": 1, "state_interval_s": 0.01, "lease_s": 0.2, "heartbeat_s": 0.1}
    return raw_settings


@pytest.fixture
async def running(detecting: dict[str, Any], stages: Stages) -> AsyncIterator[Front]:
    async with front(Settings.model_validate(detecting), stages) as one:
        yield one


class Drawn:
    """An answer's only image, its manifest and its lanes."""

    def __init__(self, pixels: np.ndarray, manifest: Manifest, lanes: list[DenoiseRequest], file: bytes) -> None:
        self.pixels, self.manifest, self.lanes, self.file = pixels, manifest, lanes, file


async def drawn(one: Front, stages: Stages, *details: dict[str, Any], **fields: Any) -> Drawn:
    answer = await one.generate(**{"seed": 40, "steps": 10, "details": [*details], **fields})
    assert answer.json()["status"] == "complete", answer.text
    file = (await one.http.get(answer.json()["image_url"])).content
    manifest = read_manifest(file)
    assert manifest is not None
    with Image.open(io.BytesIO(file)) as image:
        pixels = np.asarray(image)
    return Drawn(pixels, manifest, await lanes_of(stages, "sd15", answer.json()["job_id"]), file)


async def test_what_is_found_is_drawn_over_at_the_model_s_size(running: Front, stages: Stages) -> None:
    own = {"strength": 0.5, "prompt": "a face", "negative_prompt": "x", "steps": 12, "guidance_scale": 3.0}
    one = await drawn(running, stages, {"detector": "apart", **EXACT, **own}, width=256, height=256)
    assert stages.detector is not None
    asked = (await stages.detector.requests_asked.remote())[-1]
    assert (asked.detector, asked.confidence, asked.image.shape) == ("apart", 0.3, (256, 256, 3))
    assert (asked.image == 40).all()
    whole, *parts = sorted(one.lanes, key=lambda lane: (lane.mask is not None, lane.seed))
    assert (whole.mask, whole.strength) == (None, None)
    for number, (lane, found) in enumerate(zip(parts, APART[::-1], strict=True)):  # the larger one first
        assert (lane.seed, lane.steps, lane.strength, lane.guidance_scale) == (40 + number, 12, 0.5, 3.0)
        assert (lane.width, lane.height, lane.masked_content, lane.output) == (256, 256, "image", "image")
        assert lane.image is not None
        assert lane.mask is not None
        assert lane.image.shape == (256, 256, 3)
        assert (lane.image == 40).all()
        assert (lane.mask == 255).all()  # without padding, and in its own shape
        box = one.pixels[found.top : found.bottom, found.left : found.right]
        assert (box == 40 + number).all()
    outside = np.ones((256, 256), bool)
    for found in APART:
        outside[found.top : found.bottom, found.left : found.right] = False
    assert (one.pixels[outside] == 40).all()
    (detail,) = one.manifest.details
    assert (detail.detector, detail.detector_hash, detail.prompt) == ("apart", "d" * 64, "a face")
    assert [part.seed for part in detail.parts] == [40, 41]
    assert [found.model_dump() for part in detail.parts for found in part.detections] == [
        {name: getattr(found, name) for name in ("label", "score", "left", "top", "right", "bottom")}
        for found in APART[::-1]
    ]


async def test_what_is_left_out_is_the_image_s(running: Front, stages: Stages) -> None:
    one = await drawn(running, stages, {"detector": "apart"}, guidance_scale=6.0, scheduler="heun", clip_skip=0)
    _, *parts = one.lanes
    assert len(parts) == 2
    assert {(lane.sampler, lane.steps, lane.guidance_scale) for lane in parts} == {("heun", 10, 6.0)}
    assert {lane.strength for lane in parts} == {0.4}
    job = await running.newest()
    assert job.step == job.steps == 30
    timings = (job.result or {})["timings"]
    assert job.device_s == pytest.approx(timings["device_s"], abs=1e-3)


async def test_parts_that_touch_are_drawn_one_after_the_other(running: Front, stages: Stages) -> None:
    one = await drawn(running, stages, {"detector": "touching", **EXACT})
    last = next(lane.image for lane in one.lanes if lane.seed == 42)
    assert last is not None
    assert (last[:40, :40] == 41).all()  # of the one before: a fifth of its sides
    assert (last[80:, 80:] == 40).all()
    assert (one.pixels[110:145, 110:145] == 41).all()
    assert (one.pixels[145:170, 145:170] == 42).all()


async def test_details_follow_each_other(running: Front, stages: Stages) -> None:
    details = [{"detector": "apart", **EXACT, "max_count": 1}, {"detector": "apart", **EXACT, "combine": "all"}]
    one = await drawn(running, stages, *details, n=1)
    assert stages.detector is not None
    earlier, later = (await stages.detector.requests_asked.remote())[-2:]
    assert (earlier.image == 40).all()
    assert [len(detail.parts) for detail in one.manifest.details] == [1, 1]
    assert [len(part.detections) for detail in one.manifest.details for part in detail.parts] == [1, 2]
    assert later.image.shape == earlier.image.shape


async def test_where_nothing_is_found_nothing_is_drawn(running: Front, stages: Stages) -> None:
    plain = await drawn(running, stages)
    one = await drawn(
        running, stages, {"detector": "nothing"}, {"detector": "apart", "classes": ["square"], "max_area": 0.01}
    )
    assert len(one.lanes) == 1
    assert (one.pixels == plain.pixels).all()
    assert [detail.parts for detail in one.manifest.details] == [(), ()]
    assert one.manifest.model_copy(update={"details": ()}) == plain.manifest
    job = await running.newest()
    assert job.step == job.steps == 10


async def test_a_second_pass_and_an_image_come_before(running: Front, stages: Stages) -> None:
    one = await drawn(running, stages, {"detector": "apart", **EXACT}, hires={"scale": 1.5, "upscaler": "lanczos"})
    assert stages.detector is not None
    assert (await stages.detector.requests_asked.remote())[-1].image.shape == (384, 384, 3)
    assert one.pixels.shape == (384, 384, 3)
    assert [lane.mask is None for lane in one.lanes] == [True, True, False, False]
    begun = await drawn(running, stages, {"detector": "apart"}, image=sent(gradient(256, 256)), strength=0.5)
    assert [lane.mask is None for lane in begun.lanes] == [True, False, False]
    assert {lane.enlarge for lane in begun.lanes} == {None}


async def test_each_image_has_its_own(running: Front, stages: Stages) -> None:
    answer = await running.generate(seed=40, n=2, steps=10, details=[{"detector": "apart", "max_count": 1}])
    assert answer.json()["status"] == "complete", answer.text
    lanes = await lanes_of(stages, "sd15", answer.json()["job_id"])
    assert sorted((lane.seed, lane.mask is None) for lane in lanes) == [
        (40, False),
        (40, True),
        (41, False),
        (41, True),
    ]


async def test_previews_are_of_the_whole_image(running: Front, stages: Stages) -> None:
    one = await drawn(running, stages, {"detector": "apart"}, preview=True)
    assert [lane.preview_every > 0 for lane in one.lanes] == [True, False, False]


async def test_a_lost_detector_is_asked_again(running: Front, stages: Stages) -> None:
    one = await drawn(running, stages, {"detector": "lost-one", **EXACT})
    assert len(one.lanes) == 3


async def test_loras_of_a_detail_s_prompt_are_looked_up(running: Front) -> None:
    refused = await running.generate(details=[{"detector": "apart", "prompt": "x <lora:nothing:1>"}])
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "lora_refused")


@pytest.mark.parametrize(
    ("fields", "field", "why"),
    [
        ({"detector": "nowhere"}, "details.0.detector", "no detector named 'nowhere'"),
        ({"detector": "../apart"}, "details.0.detector", "no detector named"),
        ({"detector": "face_yolov8n"}, "details.0.detector", "a pickle can run code"),
        ({"detector": ""}, "details.0.detector", "at least 1 character"),
        ({}, "details.0.detector", "is missing"),
        ({"classes": ["dog"]}, "details.0.classes", "names 'dog'; apart finds circle, square"),
        ({"confidence": 1.5}, "details.0.confidence", "less than or equal to 1"),
        ({"max_count": 17}, "details.0.max_count", "less than or equal to 16"),
        ({"min_area": 0.5, "max_area": 0.1}, "details.0.min_area", "0.5, above max_area (0.1)"),
        ({"strength": 0}, "details.0.strength", "greater than 0"),
        ({"strength": 0.01}, "details.0.strength", "it leaves none of 20 steps"),
        ({"steps": 1000}, "details.0.steps", "outside"),
        ({"guidance_scale": 99}, "details.0.guidance_scale", "outside"),
        ({"sampler": "nothing"}, "details.0.sampler", "nothing"),
        ({"width": 100}, "details.0.width", "is 100, outside 128..512"),
        ({"width": 130}, "details.0.width", "no multiple of 8"),
        ({"prompt": "((((" * 20 + "x"}, "details.0.prompt", "details.0"),
        ({"prompt": "\x00"}, "details.0.prompt", "NUL"),
        ({"prompt": "a AND b", "guidance_scale": 1}, "details.0.guidance_scale", "details.0: prompt has AND"),
        ({"combine": "some"}, "details.0.combine", "each"),
        ({"radius": 3}, "details.0.radius", ""),
    ],
)
async def test_what_is_refused(running: Front, fields: dict[str, Any], field: str, why: str) -> None:
    whole = {} if field == "details.0.detector" else {"detector": "apart"}
    answer = await running.generate(steps=20, scheduler="euler", details=[{**whole, **fields}])
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (422, field), error
    assert why in error["message"]


async def test_too_many_and_with_a_mask(running: Front) -> None:
    answer = await running.generate(details=[{"detector": "apart"}] * 5)
    assert answer.json()["error"]["message"] == "5 details are sent, at most 4"
    image = {"image": sent(gradient(128, 128)), "mask": sent(square(128, 128, 0, 0, 64))}
    answer = await running.generate(details=[{"detector": "apart"}], **image)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "details")


async def test_without_detectors_they_are_refused(raw_settings: dict[str, Any], stages: Stages) -> None:
    async with front(Settings.model_validate(raw_settings), stages) as one:
        answer = await one.generate(details=[{"detector": "apart"}])
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "details")
        assert "no detectors (detectors.folder)" in answer.json()["error"]["message"]
        assert (await one.http.get("/models")).json()["detectors"] == {}


async def test_the_list_of_detectors(running: Front) -> None:
    told = (await running.http.get("/models")).json()
    assert told["detectors"]["apart"] == ["circle", "square"]
    assert "a pickle can run code" in told["skipped"]["detectors"]["face_yolov8n"]


async def test_a_cancelled_job_leaves_in_the_middle_of_its_details(running: Front, stages: Stages) -> None:
    answer = await running.generate("endless detailing", wait=None, seed=40, details=[{"detector": "apart"}])
    job_id = answer.json()["job_id"]

    async with asyncio.timeout(10):
        while len(await lanes_of(stages, "sd15", job_id)) < 3:
            pass
    assert (await running.http.delete(f"/jobs/{job_id}")).json()["status"] == "cancelled"
    left = await stages.denoisers["sd15"].lanes_left.remote()
    assert sum(lane.startswith(job_id) for lane in left) == 2


async def test_a_killed_router_s_details_go_on_in_another(detecting: dict[str, Any], stages: Stages) -> None:
    settings = Settings.model_validate(detecting)
    async with front(settings, stages, owner="one") as one, front(settings, stages, owner="other") as other:
        fields = {"seed": 40, "steps": 10, "details": [{"detector": "apart", **EXACT}]}
        answer = await one.generate("endless once detailing", wait=None, **fields)
        job_id = answer.json()["job_id"]
        async with asyncio.timeout(10):
            # the base's result, both parts' snapshots, what was found; four parts may have been
            while set(await other.service.store.kept(job_id)) != {(0, 0), (0, 1), (0, 2), (0, 5)}:
                pass
        one.service.runner.drop([job_id])  # nothing is written any more
        await until(lambda: not one.service.runner.runs(job_id))
        assert stages.detector is not None
        looked = len(await stages.detector.requests_asked.remote())
        async with asyncio.timeout(10):
            while not other.service.runner.runs(job_id):
                await other.maintenance.beat()
        job = await other.service.wait(await other.service.store.get(job_id), 20)
        assert (job.state, job.step) == (JobState.COMPLETE, job.steps)
        assert len(await stages.detector.requests_asked.remote()) == looked
        begun = await stages.denoisers["sd15"].lanes_begun.remote(job_id)
        assert sorted(step for _, step in begun) == [0, 0, 0, 1, 1]
        name = (job.result or {})["images"][0]["name"]
        with Image.open(io.BytesIO((await other.http.get(f"/images/{name}")).content)) as image:
            resumed = np.asarray(image)
    async with front(settings, stages) as whole:
        assert (resumed == (await drawn(whole, stages, {"detector": "apart", **EXACT})).pixels).all()


async def test_the_infotext_has_adetailer_s_keys(running: Front, stages: Stages) -> None:
    own = {"prompt": "a face, big", "strength": 0.5, "dilation": 3, "offset_y": 5, "combine": "others", "width": 128}
    one = await drawn(running, stages, {"detector": "apart"}, {"detector": "touching", **own}, width=256, height=256)
    text = infotext_of(one.manifest)
    assert "ADetailer model: apart, ADetailer confidence: 0.3" in text
    assert 'ADetailer model 2nd: touching, ADetailer prompt 2nd: "a face, big"' in text
    assert "ADetailer dilate erode 2nd: 6, ADetailer mask merge invert 2nd: Merge and Invert" in text
    assert "ADetailer y offset 2nd: -5" in text
    assert "ADetailer inpaint width 2nd: 128, ADetailer inpaint height 2nd: 256" in text
