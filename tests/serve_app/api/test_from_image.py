"""A request with an image, from its bytes to the bytes of its result; and what is refused, nothing else disturbed."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from deployments.engine.types import DenoiseRequest
from serve_app.config.settings import Settings
from serve_app.jobs.states import JobState
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front, until
from tests.serve_app.images.pictures import file_of, gradient, received, sent, square

WIDTH, HEIGHT = 192, 128
PICTURE = gradient(WIDTH, HEIGHT)
FILE = file_of(PICTURE)
MASK = square(WIDTH, HEIGHT, 40, 24, 48)


@pytest.fixture
def settings(raw_settings: dict[str, Any]) -> Settings:
    raw_settings["limits"] = {"max_image_pixels": 1 << 18, "max_image_body_bytes": 2 << 20}
    return Settings.model_validate(raw_settings)


async def lanes_of(stages: Stages, stage: str, job_id: str) -> list[DenoiseRequest]:
    lanes: list[DenoiseRequest] = await stages.denoisers[stage].lanes_asked.remote()
    return [lane for lane in lanes if lane.lane_id.startswith(job_id)]


async def result_of(one: Front, answer: httpx.Response) -> np.ndarray:
    """The first image's pixels, which the stand-in painted with its seed."""
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "complete", answer.text
    return received((await one.http.get(answer.json()["image_url"])).content)


async def test_nobody_is_shown_what_a_job_begins_with_and_it_goes_at_its_end(running: Front, tmp_path: Path) -> None:
    accepted = await running.generate("endless", wait=None, image=sent(PICTURE), seed=4)
    job_id = accepted.json()["job_id"]
    folder = tmp_path / "images" / job_id
    assert [file.name for file in folder.iterdir()] == ["input.png"]
    for name in (f"{job_id}-input.png", "input.png", f"{job_id}/input.png"):
        assert (await running.http.get(f"/images/{name}")).status_code == 404
    await running.http.delete(f"/jobs/{job_id}")
    await until(lambda: not folder.exists())
    drawn = (await running.generate(image=sent(PICTURE), seed=4)).json()
    await until(lambda: len(list((tmp_path / "images" / drawn["job_id"]).iterdir())) == 1)
    assert (await running.http.get(drawn["image_url"])).status_code == 200


async def test_only_so_many_pictures_are_unpacked_at_the_same_time(running: Front) -> None:
    async with AsyncExitStack() as others:
        for _ in range(4):
            await others.enter_async_context(running.service.pictures.acquire(0))
        waiting = [
            asyncio.create_task(running.generate(image=sent(PICTURE), seed=4)),
            asyncio.create_task(running.http.post("/sdapi/v1/extra-single-image", json={"image": sent(PICTURE)})),
        ]
        assert (await running.generate(seed=4)).json()["status"] == "complete"
        assert not any(one.done() for one in waiting)
    answers = await asyncio.gather(*waiting)
    assert [answer.status_code for answer in answers] == [200, 200]


async def test_img2img(running: Front, stages: Stages) -> None:
    answer = await running.generate(image=sent(PICTURE), strength=0.5, seed=4, steps=20)
    assert (await result_of(running, answer)).shape == (HEIGHT, WIDTH, 3)
    (lane,) = await lanes_of(stages, "sd15", answer.json()["job_id"])
    assert lane.image is not None
    assert (lane.image == PICTURE).all()
    assert (lane.mask, lane.strength, lane.width, lane.height) == (None, 0.5, WIDTH, HEIGHT)
    assert answer.json()["request"]["image"]["sha256"] == hashlib.sha256(file_of(PICTURE)).hexdigest()
    manifest = (await running.newest()).result["images"][0]["manifest"]  # type: ignore[index]
    assert manifest["image"]["sha256"] == hashlib.sha256(file_of(PICTURE)).hexdigest()
    assert manifest["strength"] == 0.5


async def form(running: Front, request: dict[str, Any] | str, **files: Any) -> httpx.Response:
    written = request if isinstance(request, str) else json.dumps({"prompt": "x", "seed": 6, **request})
    parts = {"request": (None, written, "application/json"), **files}
    return await running.http.post("/generate", files=parts, headers={"prefer": "wait=30"})


async def test_a_form_with_files_is_the_same_request(running: Front, stages: Stages) -> None:
    answer = await form(running, {"strength": 0.9}, image=FILE, mask=file_of(MASK))
    drawn = await result_of(running, answer)
    assert (drawn[MASK == 0] == PICTURE[MASK == 0]).all()
    assert (drawn[MASK > 0] == 6).all()
    (lane,) = await lanes_of(stages, "sd15", answer.json()["job_id"])
    assert lane.strength == 0.9
    assert answer.json()["request"]["image"]["sha256"] == hashlib.sha256(FILE).hexdigest()
    named = json.dumps({"prompt": "x", "seed": 6}).encode()
    assert (await running.http.post("/generate", files={"request": named, "image": FILE})).status_code == 202


@pytest.mark.parametrize(
    ("request_", "files", "status", "field"),
    [
        ({"steps": "20"}, {"image": FILE}, 422, "steps"),  # in a form, too, numbers of the request are JSON's
        ({"image": sent(PICTURE)}, {"image": FILE}, 422, "image"),
        ({}, {"image": (None, "text")}, 422, "image"),
        ({}, {"image": b""}, 422, "image"),
        ({}, {"mask": FILE}, 422, "mask"),
        ({}, {"picture": FILE}, 422, "picture"),
        ("[]", {"image": FILE}, 422, None),
        ("", {"image": FILE}, 400, None),
        ("{", {"image": FILE}, 400, None),
    ],
)
async def test_a_form_that_is_wrong_is_refused(
    running: Front, request_: Any, files: Any, status: int, field: str | None
) -> None:
    answer = await form(running, request_, **files)
    assert (answer.status_code, answer.json()["error"].get("field")) == (status, field), answer.text


async def test_a_prompt_may_be_empty_where_there_is_a_picture(running: Front) -> None:
    assert (await running.generate(prompt="", image=sent(PICTURE), seed=2)).json()["status"] == "complete"


async def test_what_is_not_masked_comes_back_to_the_byte(running: Front, stages: Stages) -> None:
    answer = await running.generate(image=sent(PICTURE), mask=sent(MASK), seed=6, n=1)
    drawn = await result_of(running, answer)
    assert (drawn[MASK == 0] == PICTURE[MASK == 0]).all()
    assert (drawn[MASK > 0] == 6).all()
    (lane,) = await lanes_of(stages, "sd15", answer.json()["job_id"])
    assert lane.mask is not None
    assert (lane.mask == MASK).all()
    assert lane.strength == 1.0


async def test_only_masked_gives_back_the_whole_picture(running: Front, stages: Stages) -> None:
    large = gradient(600, 400)
    mask = square(600, 400, 100, 100, 60)
    answer = await running.generate(
        image=sent(large), mask=sent(mask), inpaint={"only_masked": True, "padding": 8}, seed=8
    )
    drawn = await result_of(running, answer)
    assert (drawn[mask == 0] == large[mask == 0]).all()
    assert (drawn[mask > 0] == 8).all()
    assert [answer.json()["images"][0][side] for side in ("width", "height")] == [600, 400]
    (lane,) = await lanes_of(stages, "sd15", answer.json()["job_id"])
    assert (lane.width, lane.height) == (256, 256)


async def test_outpainting(running: Front) -> None:
    answer = await running.generate(image=sent(PICTURE), outpaint={"right": 64, "top": 32}, seed=10)
    drawn = await result_of(running, answer)
    assert drawn.shape == (HEIGHT + 32, WIDTH + 64, 3)
    assert (drawn[32:, :WIDTH] == PICTURE).all()
    assert (drawn[:32] == 10).all()
    assert (drawn[:, WIDTH:] == 10).all()


async def test_a_refiner_comes_after_it_where_it_is_asked_for(running: Front, stages: Stages) -> None:
    fields = {"model": "demo-sdxl", "image": sent(PICTURE), "mask": sent(MASK), "seed": 2}
    alone = (await running.generate(**fields)).json()["job_id"]
    assert await lanes_of(stages, "sdxl_refiner", alone) == []
    answer = await running.generate(**fields, refiner={"switch_at": 0.7}, strength=0.9)
    drawn = await result_of(running, answer)
    assert (drawn[MASK == 0] == PICTURE[MASK == 0]).all()
    (base,) = await lanes_of(stages, "sdxl_base", answer.json()["job_id"])
    (refiner,) = await lanes_of(stages, "sdxl_refiner", answer.json()["job_id"])
    assert (base.strength, base.denoising_end) == (0.9, 0.7)
    assert (refiner.strength, refiner.denoising_start) == (None, 0.7)
    assert refiner.mask is not None
    assert refiner.image is not None
    unmasked = await running.generate(**fields | {"mask": None}, refiner=True)
    (refiner,) = await lanes_of(stages, "sdxl_refiner", unmasked.json()["job_id"])
    assert (refiner.image, refiner.mask) == (None, None)


async def test_a_switch_that_leaves_the_base_no_step_is_refused_at_once(running: Front) -> None:
    fields = {"model": "demo-sdxl", "image": sent(PICTURE), "refiner": True, "strength": 0.3, "steps": 20, "seed": 2}
    answer = await running.generate(**fields, scheduler="DPM++ 2M Karras")
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["field"] == "refiner.switch_at"
    assert "strength 0.3" in answer.json()["error"]["message"]
    assert (await running.generate(**fields, scheduler="DPM++ 2M")).json()["status"] == "complete"


async def test_size_follows_the_image_unless_the_request_says(running: Front, stages: Stages) -> None:
    odd = await running.generate(image=sent(gradient(203, 150)), seed=2)
    assert (await result_of(running, odd)).shape == (144, 200, 3)
    scaled = await running.generate(image=sent(gradient(600, 400)), width=256, height=192, seed=2)
    assert (await result_of(running, scaled)).shape == (192, 256, 3)
    (lane,) = await lanes_of(stages, "sd15", scaled.json()["job_id"])
    assert lane.image is not None
    assert lane.image.shape == (192, 256, 3)


IMAGE, WHITE = sent(PICTURE), sent(MASK)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"image": IMAGE, "strength": 0.0}, "strength"),
        ({"image": IMAGE, "strength": 1.01}, "strength"),
        ({"image": IMAGE, "strength": 0.01, "steps": 20}, "strength"),
        ({"image": IMAGE, "mask": sent(square(64, 64, 0, 0, 64))}, "mask"),
        ({"image": IMAGE, "mask": sent(MASK * 0)}, "mask"),
        ({"image": IMAGE, "mask": sent(MASK * 0 + 255), "inpaint": {"invert": True}}, "mask"),
        ({"image": IMAGE, "mask": WHITE[:100]}, "mask"),
        ({"image": 7}, "image"),
        ({"image": "http://127.0.0.1/picture.png"}, "image"),
        ({"image": IMAGE[: len(IMAGE) // 8 * 4]}, "image"),
        ({"image": sent(np.zeros((600, 600), np.uint8))}, "image"),
        ({"image": sent(gradient(600, 400))}, "width"),
        ({"image": sent(gradient(100, 400))}, "width"),
        ({"mask": WHITE}, "mask"),
        ({"strength": 0.5}, "strength"),
        ({"inpaint": {}}, "inpaint"),
        ({"outpaint": {"left": 8}}, "outpaint"),
        ({"image": IMAGE, "inpaint": {}}, "inpaint"),
        ({"image": IMAGE, "mask": WHITE, "inpaint": {"blur": 65}}, "inpaint.blur"),
        ({"image": IMAGE, "mask": WHITE, "inpaint": {"feather": 1}}, "inpaint.feather"),
        ({"image": IMAGE, "outpaint": {}}, "outpaint"),
        ({"image": IMAGE, "outpaint": {"left": 4}}, "outpaint"),
        ({"image": IMAGE, "outpaint": {"left": 4096}}, "width"),
        ({"image": IMAGE, "outpaint": {"left": 8}, "width": 256}, "width"),
        ({"image": IMAGE, "outpaint": {"left": 8}, "inpaint": {"only_masked": True}}, "inpaint.only_masked"),
        ({"image": IMAGE, "model": "demo-sdxl", "refiner": True, "strength": 0.05}, "refiner"),
        ({"image": IMAGE, "model": "demo-sdxl", "refiner": {"switch_at": 0.4}, "strength": 0.5}, "refiner.switch_at"),
    ],
)
async def test_bad_input_is_refused_by_its_name(running: Front, fields: dict[str, Any], field: str) -> None:
    answer = await running.generate(wait=None, **fields)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["field"] == field, answer.text
    assert len(answer.text) < 1000


async def test_a_refused_request_leaves_nothing_and_disturbs_nobody(running: Front, tmp_path: Path) -> None:
    beside = asyncio.create_task(running.generate("slow", seed=2))
    await until(lambda: sum(running.service.runner.depth()) == 1)
    for mask in (sent(MASK * 0), sent(square(64, 64, 0, 0, 64))):
        assert (await running.generate(image=IMAGE, mask=mask)).status_code == 422
    assert (await beside).json()["status"] == "complete"
    folders = [path for path in (tmp_path / "images").iterdir() if path.is_dir()]
    assert [path.name for path in folders] == [(await beside).json()["job_id"]]


async def test_a_full_queue_keeps_no_image(raw_settings: dict[str, Any], stages: Stages, tmp_path: Path) -> None:
    raw_settings["jobs"] |= {"max_queued": 1}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        job_id = (await one.generate("endless", wait=None, image=IMAGE, seed=2)).json()["job_id"]
        assert (await one.generate(image=IMAGE)).status_code == 503
        assert [path.name for path in (tmp_path / "images").iterdir() if path.is_dir()] == [job_id]
        await one.http.delete(f"/jobs/{job_id}")


async def test_bodies_with_images_have_a_limit_of_their_own(running: Front) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (480, 500, 3), np.uint8)
    image = sent(noise, compress_level=0)
    assert running.service.settings.limits.max_body_bytes // 2 < len(image) < 2 << 20
    padded = {"width": 256, "height": 256, "seed": 2, "image": image + "\n" * (1 << 19)}
    assert (await running.generate(**padded)).status_code == 200
    assert (await running.generate(image=IMAGE + "\n" * (2 << 20))).status_code == 413
    other = await running.http.post("/v1/images/generations", json={"prompt": "x", "image": image + "\n" * (1 << 19)})
    assert other.status_code == 413


async def test_the_name_of_a_request_holds_for_its_image(running: Front, tmp_path: Path) -> None:
    async def post(**fields: Any) -> httpx.Response:
        headers = {"prefer": "wait=30", "idempotency-key": "one"}
        return await running.http.post("/generate", json={"prompt": "x", "seed": 2, **fields}, headers=headers)

    first = await post(image=IMAGE)
    again = await post(image=f"data:image/png;base64,{IMAGE}")
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["job_id"] == first.json()["job_id"]
    other = await post(image=sent(gradient(128, 128)))
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_mismatch")
    assert len([path for path in (tmp_path / "images").iterdir() if path.is_dir()]) == 1


@pytest.fixture
async def fronts(settings: Settings, stages: Stages) -> AsyncIterator[tuple[Front, Front]]:
    quick = settings.jobs.model_copy(update={"lease_s": 0.2, "heartbeat_s": 0.1, "state_every": 1})
    settings = settings.model_copy(update={"jobs": quick})
    async with front(settings, stages, owner="one") as one, front(settings, stages, owner="other") as other:
        yield one, other


async def test_a_job_outlives_its_router_with_its_image(fronts: tuple[Front, Front], stages: Stages) -> None:
    one, other = fronts
    answer = await one.generate("endless once", wait=None, image=IMAGE, mask=WHITE, seed=4)
    job_id = answer.json()["job_id"]
    await until(lambda: one.service.hub.latest(job_id) is not None)
    await one.service.runner.drain(0)
    async with asyncio.timeout(10):
        while not other.service.runner.runs(job_id):
            await other.maintenance.beat()
    assert (await other.service.wait(await other.service.store.get(job_id), 20)).state is JobState.COMPLETE
    drawn = await result_of(other, await other.http.get(f"/result/{job_id}"))
    assert (drawn[MASK == 0] == PICTURE[MASK == 0]).all()
    assert all(lane.image is not None for lane in await lanes_of(stages, "sd15", job_id))


async def test_a_job_whose_image_is_gone_fails_and_says_so(running: Front, tmp_path: Path) -> None:
    store, runner = running.service.store, running.service.runner
    job_id = (await running.generate(image=IMAGE, seed=2)).json()["job_id"]
    request = (await store.get(job_id)).request
    job = (await store.create(request, max_queued=10))[0]
    runner.start(job)
    ended = await running.service.wait(job, 20)
    assert (ended.state, ended.error_code) == (JobState.FAILED, "unknown_image")
