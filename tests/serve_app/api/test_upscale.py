"""A picture enlarged as a job, from its bytes to the bytes of its result; and what is refused of such requests."""

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from deployments.engine.types import Priority, UpscaleRequest
from deployments.engine.upscaling.folder import UpscalerFolder
from serve_app.config.settings import Settings
from serve_app.jobs.states import JobState
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front, stand_ins, until
from tests.serve_app.images.pictures import file_of, gradient, received, sent
from tests.serve_app.upscaler_files import write_upscaler

WIDTH, HEIGHT = 90, 60
# of odd colours in the corner the stand-in classifier thinks ill
PICTURE = gradient(WIDTH, HEIGHT)
UNSAFE = PICTURE + 1
FILE = file_of(PICTURE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("upscalers")
    write_upscaler(made, "fourfold", 4)
    write_upscaler(made, "restoring", 1)
    for name in ("twofold", "endless", "lost", "n" * 100):
        write_upscaler(made, name, 2)
    (made / "old.pth").write_bytes(b"\x80\x02")
    return made


@pytest.fixture
def settings(raw_settings: dict[str, Any], folder: Path) -> Settings:
    raw_settings["limits"] = {"max_image_pixels": 1 << 18, "max_image_body_bytes": 2 << 20}
    raw_settings["upscalers"] = {"folder": str(folder)}
    raw_settings["jobs"]["stage_retry_s"] = 10
    return Settings.model_validate(raw_settings)


async def upscale(one: Front, wait: int | None = 30, headers: dict[str, str] | None = None, **fields: Any) -> Any:
    sending = {**(headers or {}), **({} if wait is None else {"prefer": f"wait={wait}"})}
    return await one.http.post("/upscale", json={"image": sent(PICTURE), **fields}, headers=sending)


async def requests_of(stages: Stages, name: str) -> list[UpscaleRequest]:
    assert stages.upscaler is not None
    asked: list[UpscaleRequest] = await stages.upscaler.requests_asked.remote()
    return [request for request in asked if request.upscaler == name]


async def image_of(one: Front, answer: httpx.Response) -> bytes:
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "complete", answer.text
    return (await one.http.get(answer.json()["image_url"])).content


async def test_by_lanczos_without_the_stage(running: Front) -> None:
    answer = await upscale(running, scale=1.5)
    data = await image_of(running, answer)
    expected = Image.fromarray(PICTURE).resize((135, 90), Image.Resampling.LANCZOS)
    assert (received(data) == np.asarray(expected)).all()
    job = answer.json()
    assert job["request"] == {
        "operation": "upscale",
        "sha256": hashlib.sha256(FILE).hexdigest(),
        "upscaler": "lanczos",
        "source_width": WIDTH,
        "source_height": HEIGHT,
        "width": 135,
        "height": 90,
        "parameters": "",
        "output_format": "png",
        "priority": "normal",
        "timeout_s": 600.0,
        "safety": "block",
    }
    assert (job["images"][0]["seed"], job["images"][0]["width"], job["images"][0]["nsfw"]["score"]) == (None, 135, 0.01)
    assert (job["progress"]["step"], job["progress"]["fraction"]) == (1, 1.0)
    assert job["timings"]["upscale_s"] > 0
    with Image.open(io.BytesIO(data)) as image:
        manifest = json.loads(image.info["darkroom"])
        assert image.info["parameters"].startswith("Postprocess upscale by: 1.5, Postprocess upscaler: Lanczos, ")
    assert (manifest["upscaler"], manifest["hash"], manifest["safety"]["action"]) == ("lanczos", None, "none")


async def test_by_a_model_as_large_as_it_makes_it(running: Front, stages: Stages) -> None:
    answer = await upscale(running, upscaler="fourfold", priority="interactive", output_format="webp")
    assert received(await image_of(running, answer)).shape == (4 * HEIGHT, 4 * WIDTH, 3)
    (asked,) = await requests_of(stages, "fourfold")
    assert (asked.image == PICTURE).all()
    assert (asked.width, asked.height, asked.priority) == (4 * WIDTH, 4 * HEIGHT, Priority.INTERACTIVE)
    manifest = (await running.newest()).result["images"][0]["manifest"]  # type: ignore[index]
    assert (manifest["upscaler"], manifest["hash"], manifest["device"]) == ("fourfold", "a" * 64, "cpu")
    assert answer.json()["timings"]["device_s"] > 0


async def test_sizes(running: Front) -> None:
    for asked, size in (
        ({}, (180, 120)),
        ({"upscaler": "twofold", "scale": 3}, (270, 180)),
        ({"width": 136, "height": 91}, (136, 91)),
        ({"upscaler": "restoring"}, (90, 60)),
        ({"upscaler": "n" * 100}, (180, 120)),
    ):
        height, width, _ = received(await image_of(running, await upscale(running, **asked))).shape
        assert (width, height) == size, asked


async def test_it_is_turned_as_its_exif_says(running: Front) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    answer = await upscale(running, image=sent(grey, "JPEG", exif=exif))
    assert received(await image_of(running, answer)).shape == (2 * WIDTH, 2 * HEIGHT, 3)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"scale": 1.0}, "scale", "greater than 1"),
    ({"scale": 8.5}, "scale", "less than or equal to 8"),
    ({"scale": "2"}, "scale", "valid number"),
    ({"scale": 2, "width": 180}, "scale", "leave one out"),
    ({"width": 90}, "width", "must be larger"),
    ({"height": 40}, "height", "must be larger"),
    ({"width": 300, "height": 100}, "width", "another shape"),
    ({"width": 10_000}, "width", "at most 8 times"),
    ({"scale": 8}, "scale", "345600 pixels: at most 262144"),
    ({"upscaler": "nothing"}, "upscaler", "no upscaler named 'nothing'"),
    ({"upscaler": "../fourfold"}, "upscaler", "no upscaler named"),
    ({"upscaler": "old"}, "upscaler", "pickle"),
    ({"image": sent(gradient(600, 500))}, "image", "300000 pixels, at most 262144"),
    ({"image": "https://example.org/a.png"}, "image", "nothing is fetched"),
    ({"image": "AAAA"}, "image", "isn't a readable PNG, JPEG or WebP"),
    ({"image": sent(gradient(400, 400)), "upscaler": "fourfold", "scale": 1.1}, "upscaler", "would make 2560000"),
    ({"timeout_s": 1e9}, "timeout_s", "at most"),
    ({"safety": "off"}, "safety", "weaker"),
    ({"webhook_url": "https://example.org/"}, "webhook_url", ""),
    ({"prompt": "x"}, "prompt", "unknown field"),
]


async def test_what_is_refused(running: Front) -> None:
    for asked, field, why in REFUSED:
        answer = await upscale(running, **asked)
        error = answer.json()["error"]
        assert (answer.status_code, error["field"]) == (422, field), asked
        assert why in error["message"], asked
    assert (await running.http.get("/jobs")).json()["jobs"] == []


async def test_a_picture_that_is_cut_off_is_refused(running: Front) -> None:
    answer = await running.http.post("/upscale", json={"image": sent(PICTURE)[: len(sent(PICTURE)) // 2 // 4 * 4]})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "image")


@pytest.mark.parametrize(("mode", "status"), [("block", "blocked"), ("blur", "complete"), ("flag", "complete")])
async def test_an_unsafe_picture(raw_settings: dict[str, Any], stages: Stages, mode: str, status: str) -> None:
    raw_settings["safety"] = {"mode": mode}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        job = (await upscale(one, image=sent(UNSAFE))).json()
        assert (job["status"], job["images"][0]["nsfw"]["flagged"]) == (status, True)
        assert (job["image_url"] is None) == (mode == "block")


async def test_its_events(running: Front) -> None:
    accepted = (await upscale(running, wait=None, upscaler="twofold")).json()
    events = await running.events(accepted["job_id"])
    assert events[0][0] in ("queued", "complete")
    assert events[-1][0] == "complete"
    assert events[-1][1]["progress"]["steps"] == 2


async def test_cancelled_it_leaves_the_stage(running: Front, stages: Stages) -> None:
    accepted = (await upscale(running, wait=None, upscaler="endless")).json()
    await until(lambda: running.service.hub.latest(accepted["job_id"]) is not None)
    cancelled = await running.http.delete(f"/jobs/{accepted['job_id']}")
    assert cancelled.json()["status"] == "cancelled"
    assert stages.upscaler is not None
    async with asyncio.timeout(10):
        while "endless" not in await stages.upscaler.requests_left.remote():  # noqa: ASYNC110  # it is another thread's
            await asyncio.sleep(0.01)


async def test_a_replica_that_is_lost_is_asked_again(settings: Settings) -> None:
    stages = stand_ins()
    async with front(settings, stages) as one:
        assert (await upscale(one, upscaler="lost")).json()["status"] == "complete"
    assert len(await requests_of(stages, "lost")) == 2


async def test_what_its_router_left_another_finishes(settings: Settings, stages: Stages) -> None:
    async with front(settings, stages) as one:
        job_id = (await upscale(one, wait=None, upscaler="endless")).json()["job_id"]
        await until(lambda: one.service.hub.latest(job_id) is not None)
    async with front(settings, stages, owner="router-2") as other:
        job = await other.service.store.get(job_id)
        assert job.state is JobState.QUEUED
        await other.maintenance.beat()
        assert other.service.runner.runs(job_id)
        await other.service.cancel(job_id)


async def test_without_its_folder_a_stored_job_fails(raw_settings: dict[str, Any], settings: Settings) -> None:
    stages = stand_ins()
    async with front(settings, stages) as one:
        job_id = (await upscale(one, wait=None, upscaler="endless")).json()["job_id"]
        await until(lambda: one.service.hub.latest(job_id) is not None)
    del raw_settings["upscalers"]
    raw_settings["jobs"] |= {"lease_s": 0.2, "heartbeat_s": 0.1}
    async with front(Settings.model_validate(raw_settings), stages) as other:
        async with asyncio.timeout(10):
            while not (job := await other.service.store.get(job_id)).state.terminal:
                await other.maintenance.beat()
        assert (job.state, job.error_code) == (JobState.FAILED, "unknown_model")


async def test_a_key_makes_one_job_of_repetitions(running: Front) -> None:
    key = {"Idempotency-Key": "k"}
    first = await upscale(running, headers=key)
    again = await upscale(running, headers=key, upscaler="lanczos")
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["job_id"] == first.json()["job_id"]
    for other in ({"scale": 3}, {"image": sent(UNSAFE)}):
        refused = await upscale(running, headers=key, **other)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_mismatch")
    drawn = await running.http.post("/generate", json={"prompt": "x"}, headers=key)
    assert drawn.json()["error"]["code"] == "idempotency_mismatch"


async def test_they_are_listed(running: Front, folder: Path) -> None:
    upscalers = (await running.http.get("/models")).json()["upscalers"]
    assert upscalers == ["lanczos", *UpscalerFolder(str(folder)).names()]
    assert {"fourfold", "twofold"} <= set(upscalers)
    assert "old" not in upscalers


async def files(running: Front, job_id: str) -> set[str]:
    return {*(await running.service.images.files_by_job()).get(job_id, ())}


async def test_the_picture_is_kept_until_the_job_has_ended(running: Front) -> None:
    job = (await upscale(running, wait=None, upscaler="endless")).json()
    assert await files(running, job["job_id"]) == {"input.png"}
    await running.http.delete(f"/jobs/{job['job_id']}")
    async with asyncio.timeout(10):
        while await files(running, job["job_id"]):  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.01)


@pytest.fixture
async def running(settings: Settings, stages: Stages) -> AsyncIterator[Front]:
    async with front(settings, stages) as one:
        yield one
