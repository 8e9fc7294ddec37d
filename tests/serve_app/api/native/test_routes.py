"""The native API over a real store, real images and a real runner; the stages are stand-ins."""

import asyncio
import base64
import io
import time
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve_app.config.settings import Settings
from serve_app.errors import StoreUnavailable
from serve_app.jobs.job import Job
from serve_app.jobs.states import JobState
from serve_app.schemas.generation_request import LATENT_UPSCALERS, PIXEL_UPSCALERS
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front, until
from tests.serve_app.images.manifest_files import read_manifest


async def test_the_classic_shapes(running: Front) -> None:
    response = await running.generate(wait=None, seed=4)
    assert response.status_code == 202
    body = response.json()
    assert body["status"] == "queued"
    assert body["position"] == 1
    assert set(body) == {"job_id", "status", "position", "eta_seconds", "links"}
    assert response.headers["location"] == body["links"]["result"] == f"/result/{body['job_id']}"
    await running.events(body["job_id"])
    result = (await running.http.get(body["links"]["result"])).json()
    assert result["status"] == "complete"
    assert result["image_url"] == result["images"][0]["url"]


async def test_waiting_gets_the_result_at_once(running: Front) -> None:
    response = await running.generate(seed=4, n=2, safety=None)
    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait=30"
    body = response.json()
    assert body["status"] == "complete"
    assert [image["seed"] for image in body["images"]] == [4, 5]
    assert body["progress"] == {
        "step": 50,
        "steps": 50,
        "fraction": 1.0,
        "images_done": 2,
        "eta_seconds": 0.0,
    }
    assert body["timings"]["total_s"] > 0
    assert body["request"]["seed"] == 4


async def test_all_lines_of_the_header_are_read(running: Front) -> None:
    lines = [("prefer", "respond-async"), ("prefer", "handling=lenient, wait=30"), ("prefer", "wait=1")]
    response = await running.http.post("/generate", json={"prompt": "a red circle", "seed": 4}, headers=lines)
    assert (response.status_code, response.json()["status"]) == (200, "complete")
    assert response.headers["preference-applied"] == "wait=30"  # RFC 7240: of one that comes twice the first counts


async def test_the_image_holds_its_manifest(running: Front) -> None:
    body = (await running.generate(seed=6, output_format="webp")).json()
    response = await running.http.get(body["image_url"])
    assert response.headers["content-type"] == "image/webp"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert Image.open(io.BytesIO(response.content)).size == (256, 256)
    manifest = read_manifest(response.content)
    assert manifest is not None
    assert (manifest.seed, manifest.prompt, manifest.model.name) == (6, "a red circle", "demo-sd15")


async def test_sdxl_goes_through_its_refiner(running: Front) -> None:
    body = (await running.generate(model="demo-sdxl", seed=2)).json()
    manifest = read_manifest((await running.http.get(body["image_url"])).content)
    assert manifest is not None
    assert manifest.refiner is not None
    assert (manifest.refiner.name, manifest.refiner.switch_at) == ("demo-sdxl-refiner", 0.8)


async def test_an_unsafe_image_is_blocked_and_the_clean_one_returned(running: Front) -> None:
    body = (await running.generate(seed=2, n=2)).json()
    clean, unsafe = body["images"]
    assert body["status"] == "complete"
    assert (clean["blocked"], unsafe["blocked"], unsafe["url"]) == (False, True, None)
    assert unsafe["nsfw"] == {
        "flagged": True,
        "score": 0.95,
        "action": "blocked",
        "flagged_by": ["classifier"],
    }
    assert body["image_url"] == clean["url"]


async def test_a_job_of_unsafe_images_is_blocked(running: Front) -> None:
    body = (await running.generate(seed=3)).json()
    assert (body["status"], body["image_url"], body["error"]["code"]) == ("blocked", None, "blocked")


@pytest.mark.parametrize(("mode", "action"), [("blur", "blurred"), ("flag", "flagged")])
async def test_unsafe_images_may_be_blurred_or_flagged(
    raw_settings: dict[str, Any], stages: Stages, mode: str, action: str
) -> None:
    async with front(Settings.model_validate({**raw_settings, "safety": {"mode": mode}}), stages) as one:
        image = (await one.generate(seed=3)).json()["images"][0]
    assert (image["nsfw"]["action"], image["blocked"]) == (action, False)


async def test_without_safety_nothing_is_classified(raw_settings: dict[str, Any], stages: Stages) -> None:
    assert stages.classifier is not None
    before = await stages.classifier.images_classified.remote()
    async with front(Settings.model_validate({**raw_settings, "safety": {"mode": "off"}}), stages) as one:
        body = (await one.generate(seed=3)).json()
    image = body["images"][0]
    assert (body["status"], image["blocked"], image["nsfw"]["score"]) == ("complete", False, None)
    assert await stages.classifier.images_classified.remote() == before


async def test_a_pattern_of_the_settings_refuses_the_prompt(raw_settings: dict[str, Any], stages: Stages) -> None:
    safety = {"prompt_patterns": [r"\bforbidden\b"]}
    async with front(Settings.model_validate({**raw_settings, "safety": safety}), stages) as one:
        response = await one.generate("something FORBIDDEN")
        assert (response.status_code, response.json()["error"]["code"]) == (422, "prompt_refused")
        for marked in ("(for)(bidden:0.5)", r"for\bidden", "[x|forbidden] cat", "x [forbidden:20]"):
            assert (await one.generate(marked)).json()["error"]["code"] == "prompt_refused", marked
        assert (await one.generate("something else", seed=2)).status_code == 200


async def test_events_tell_a_job_s_life(running: Front) -> None:
    body = (await running.generate(wait=None, seed=2, preview=True)).json()
    events = await running.events(body["job_id"])
    names = [name for name, _ in events]
    assert names[0] == "queued"
    assert names[-1] == "complete"
    assert set(names[1:-1]) <= {"progress"}
    assert events[-1][1]["images"][0]["seed"] == 2


async def test_previews_come_as_data_urls(running: Front) -> None:
    body = (await running.generate("endless", wait=None, seed=2, preview=True)).json()
    watching = asyncio.create_task(running.events(body["job_id"]))
    await until(lambda: running.service.hub.latest(body["job_id"]) is not None)
    await running.http.delete(body["links"]["cancel"])
    events = await watching
    progress = [data for name, data in events if name == "progress" and "preview" in data]
    assert progress[0]["preview"].startswith("data:image/jpeg;base64,/9j/")
    assert progress[0]["preview_image"] == 0
    assert (progress[0]["step"], progress[0]["steps"]) == (1, 25)
    assert events[-1][0] == "cancelled"


async def test_events_of_a_finished_job_are_its_end(running: Front) -> None:
    body = (await running.generate(seed=2)).json()
    assert [name for name, _ in await running.events(body["job_id"])] == ["complete"]


@pytest.mark.parametrize(
    ("own", "asked", "seen"),
    [
        ({}, None, "blurred"),
        ({"previews": "clear"}, None, "clear"),
        ({"mode": "flag"}, None, "clear"),
        ({"mode": "flag"}, "blur", "blurred"),
        ({"mode": "flag", "previews": "clear"}, "block", "clear"),
    ],
)
async def test_a_preview_shows_no_more_than_its_image_may(
    raw_settings: dict[str, Any], stages: Stages, own: dict[str, str], asked: str | None, seen: str
) -> None:
    raw_settings["safety"] = own
    async with front(Settings.model_validate(raw_settings), stages) as one:
        body = (await one.generate("striped", wait=None, seed=2, preview=True, safety=asked)).json()
        events = await one.events(body["job_id"])
    shown = [data["preview"] for _, data in events if "preview" in data]
    assert shown
    for preview in shown:
        with Image.open(io.BytesIO(base64.b64decode(preview.partition(",")[2]))) as image:
            pixels = np.asarray(image.convert("L")).astype(int)
        contrast = np.abs(np.diff(pixels, axis=0)).mean()
        assert contrast > 200 if seen == "clear" else contrast < 20


async def test_while_the_database_is_away_an_accepted_job_goes_on(
    running: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, away = running.service.store.get, 2

    async def get(job_id: str, *, tenant: str | None = None) -> Job:
        nonlocal away
        if away:
            away -= 1
            raise StoreUnavailable("the job database can't be reached")
        return await known(job_id, tenant=tenant)

    monkeypatch.setattr(running.service.store, "get", get)
    answer = await running.generate(seed=2)
    assert (answer.status_code, answer.json()["status"], away) == (200, "complete", 1)


async def test_cancelling_takes_the_lane_out(running: Front) -> None:
    body = (await running.generate("endless", wait=None)).json()
    await until(lambda: running.service.hub.latest(body["job_id"]) is not None)
    cancelled = await running.http.delete(f"/jobs/{body['job_id']}")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    again = await running.http.delete(f"/jobs/{body['job_id']}")
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")
    assert running.service.runner.depth() == (0, 0)


async def test_a_wait_that_runs_out_answers_202(running: Front) -> None:
    response = await running.generate("endless", wait=0)
    assert response.status_code == 202
    await until(lambda: running.service.runner.depth() == (0, 1))
    headers = {"idempotency-key": "the same job", "prefer": "wait=0"}
    body = {"prompt": "endless"}
    job_id = (await running.http.post("/generate", json=body, headers=headers)).json()["job_id"]
    await until(lambda: running.service.hub.latest(job_id) is not None)  # a step was made: taken up, it still waits
    for wait_s in (0, 1):
        response = await running.http.post("/generate", json=body, headers={**headers, "prefer": f"wait={wait_s}"})
        assert (response.status_code, response.json()["status"]) == (202, "running")
    await running.http.delete(response.json()["links"]["cancel"])


async def test_a_job_s_time_runs_out(running: Front) -> None:
    body = (await running.generate("endless", timeout_s=0.3)).json()
    assert (body["status"], body["error"]["code"]) == ("failed", "deadline_exceeded")


async def test_a_full_queue_is_503_with_retry_after(raw_settings: dict[str, Any], stages: Stages) -> None:
    raw_settings["jobs"]["max_queued"] = 2
    async with front(Settings.model_validate(raw_settings), stages) as one:
        for _ in range(2):
            assert (await one.generate("endless", wait=None)).status_code == 202
        refused = await one.generate("endless", wait=None)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1


async def test_jobs_are_listed_in_pages_newest_first(running: Front) -> None:
    made = [(await running.generate(seed=2)).json()["job_id"] for _ in range(3)]
    first = (await running.http.get("/jobs", params={"limit": 2})).json()
    second = (await running.http.get("/jobs", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert [job["job_id"] for job in first["jobs"] + second["jobs"]] == made[::-1]
    assert second["next_cursor"] is None


async def test_jobs_are_found_by_the_ends_of_their_ids(running: Front) -> None:
    ids = [(await running.generate(seed=2)).json()["job_id"] for _ in range(2)]
    found = (await running.http.get("/jobs", params={"id": ids[0][-8:]})).json()
    assert ([job["job_id"] for job in found["jobs"]], found["next_cursor"]) == (ids[:1], None)
    assert (await running.http.get("/jobs", params={"id": "0" * 32})).json()["jobs"] == []
    for wrong in ("abc", "ABCD", "%%%%", "0" * 33):
        answer = await running.http.get("/jobs", params={"id": wrong})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed_id"), wrong


async def test_models_show_defaults_limits_and_licences(running: Front) -> None:
    body = (await running.http.get("/models")).json()
    assert body["default"] == "demo-sd15"
    assert [model["name"] for model in body["models"]] == ["demo-sd15", "demo-sdxl"]
    sdxl = body["models"][1]
    assert (sdxl["draws"], sdxl["examples"][0]) == ("Circles alone.", "a red circle")
    assert (sdxl["licence"], sdxl["refiner"]) == ("Apache-2.0", {"model": "demo-sdxl-refiner", "switch_at": 0.8})
    assert sdxl["limits"]["width"] == {"min": 128, "max": 512}
    assert "dpmpp_2m_karras" in body["samplers"]
    choices = {choice["name"]: choice for choice in body["sampler_choices"]}
    assert (choices["dpmpp_2m"]["label"], choices["dpmpp_2m"]["schedules"]["karras"]) == ("DPM++ 2M", "Karras")
    assert choices["webui_dpmpp_2m"]["schedules"]["kl_optimal"] == "KL Optimal"
    assert body["hires_upscalers"] == [*LATENT_UPSCALERS, *PIXEL_UPSCALERS]


async def test_an_error_of_an_image_is_the_job_s(running: Front) -> None:
    body = (await running.generate("poison", n=2)).json()
    assert (body["status"], body["error"]["code"]) == ("failed", "numerical_failure")


async def test_a_bug_is_told_to_the_log_and_not_to_the_client(running: Front) -> None:
    response = await running.generate("bug")
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text


async def test_a_checkpoint_s_path_is_told_to_the_log_and_not_to_the_client(running: Front) -> None:
    response = await running.generate("unloadable")
    assert response.json()["error"]["code"] == "checkpoint_error"
    assert "secret" not in response.text


async def test_progress_events_are_ten_a_second_whatever_the_number_of_images(running: Front) -> None:
    body = (await running.generate("slow", wait=None, seed=2, n=10)).json()
    started = time.monotonic()
    events = await running.events(body["job_id"])
    seconds = time.monotonic() - started
    progress = [data for name, data in events if name == "progress"]
    # ten images of 25 steps report 250 times
    assert 1 <= len(progress) <= 10 * seconds + 2
    assert events[-1][1]["progress"]["step"] == 250


async def test_a_running_job_s_progress_is_stored_for_other_processes(
    raw_settings: dict[str, Any], stages: Stages
) -> None:
    raw_settings["jobs"]["progress_interval_s"] = 0.01
    async with front(Settings.model_validate(raw_settings), stages) as one:
        made = [(await one.generate("endless", wait=None, seed=seed)).json() for seed in (2, 4)]
        async with asyncio.timeout(20):
            for body in made:
                while (await one.service.store.get(body["job_id"])).step != 1:  # noqa: ASYNC110  # the store tells nobody
                    await asyncio.sleep(0.01)


async def test_storing_progress_hears_of_a_cancel_in_another_process(
    raw_settings: dict[str, Any], stages: Stages
) -> None:
    raw_settings["jobs"]["progress_interval_s"] = 0.01
    async with front(Settings.model_validate(raw_settings), stages) as one:
        body = (await one.generate("slow", wait=None, seed=2, steps=50)).json()
        await until(lambda: one.service.hub.latest(body["job_id"]) is not None)
        await one.service.store.cancel(body["job_id"])
        assert (await one.service.wait(await one.service.store.get(body["job_id"]), 20)).state is JobState.CANCELLED


async def test_a_lost_stage_is_run_again_with_the_same_seed(running: Front) -> None:
    body = (await running.generate("lost", seed=8)).json()
    assert (body["status"], body["images"][0]["seed"]) == ("complete", 8)


async def test_a_lost_encoding_is_made_again(running: Front) -> None:
    body = (await running.generate("a forgotten circle", seed=10)).json()
    assert body["status"] == "complete"


async def test_a_stage_that_is_always_lost_fails_the_job(raw_settings: dict[str, Any], stages: Stages) -> None:
    raw_settings["jobs"]["stage_attempts"] = 2
    async with front(Settings.model_validate(raw_settings), stages) as one:
        body = (await one.generate("always lost")).json()
    assert (body["status"], body["error"]["code"]) == ("failed", "stage_unavailable")


async def test_jobs_of_a_router_that_went_are_run_by_the_next(settings: Settings, stages: Stages) -> None:
    async with front(settings, stages) as one:
        body = (await one.generate("endless", wait=None, seed=2)).json()
        await until(lambda: one.service.hub.latest(body["job_id"]) is not None)
    async with front(settings, stages, owner="router-2") as other:
        assert (await other.service.store.get(body["job_id"])).state is JobState.QUEUED
        await other.maintenance.beat()
        await until(lambda: other.service.hub.latest(body["job_id"]) is not None)
        assert (await other.http.delete(f"/jobs/{body['job_id']}")).json()["status"] == "cancelled"


async def test_a_job_that_has_ended_is_deleted_with_its_images(running: Front) -> None:
    body = (await running.generate(seed=2)).json()
    result = body["links"]["result"]
    endless = (await running.generate("endless", wait=None, seed=4)).json()
    refused = await running.http.delete(f"/result/{endless['job_id']}")
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "job_id")
    await running.http.delete(endless["links"]["cancel"])

    deleted = await running.http.delete(result)
    assert (deleted.status_code, deleted.content) == (204, b"")
    for path in (result, body["image_url"]):
        assert (await running.http.get(path)).status_code == 404
    assert body["job_id"] not in await running.service.images.files_by_job()
    assert (await running.http.delete(result)).status_code == 404


async def test_results_are_forgotten_after_their_time(raw_settings: dict[str, Any], stages: Stages) -> None:
    raw_settings["jobs"]["result_ttl_s"] = 0.01
    async with front(Settings.model_validate(raw_settings), stages) as one:
        body = (await one.generate(seed=2)).json()
        await asyncio.sleep(0.02)  # the time to live
        await one.maintenance.sweep()
        assert (await one.http.get(f"/result/{body['job_id']}")).status_code == 404
        assert (await one.http.get(body["image_url"])).status_code == 404
