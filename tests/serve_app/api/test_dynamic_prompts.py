"""Requests and batches whose prompts have variants and wildcards: what is drawn, recorded and refused."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.config.settings import Settings
from serve_app.planning.dynamic_prompts import expanded
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front

SMALL = {"width": 128, "height": 128, "steps": 10}
TEMPLATE = "a {large|small} __colours__ circle"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "wildcards"
    made.mkdir()
    (made / "colours.txt").write_text("red\nblue\n{dark|light} green\n")
    return made


@pytest.fixture
async def running(raw_settings: dict[str, Any], stages: Stages, folder: Path) -> AsyncIterator[Front]:
    raw_settings["jobs"] |= {"heartbeat_s": 0.1}
    raw_settings["batches"] = {"poll_s": 0.05}
    raw_settings["prompts"] = {"comments": True, "wildcards": str(folder)}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        await one.batches.start()
        yield one
        one.batches.check()


async def drawn(running: Front, prompt: str = TEMPLATE, **fields: Any) -> dict[str, Any]:
    """What the job was resolved to."""
    answer = await running.generate(prompt, **SMALL, dynamic_prompts=True, **fields)
    assert answer.json()["status"] == "complete", answer.text
    job = await running.newest()
    manifest = job.result["images"][0]["manifest"]  # type: ignore[index]
    assert manifest["prompt"] == job.request["prompt"]
    return dict(job.request)


async def test_the_seed_chooses_for_every_text(running: Front, folder: Path) -> None:
    first = await drawn(running, seed=2, n=2)
    assert first["prompt"].startswith(("a large ", "a small "))
    assert first["prompt"].endswith((" red circle", " blue circle", " dark green circle", " light green circle"))
    assert (await drawn(running, seed=2))["prompt"] == first["prompt"]
    others = {(await drawn(running, seed=seed))["prompt"] for seed in range(4, 24, 2)}
    assert len(others) > 3
    texts = {"negative_prompt": TEMPLATE, "hires": {"scale": 2.0, "prompt": TEMPLATE}, "clip_skip": 1}
    request = await drawn(running, seed=2, **texts)
    assert request["negative_prompt"] == request["hires"]["prompt"] == first["prompt"]
    region = {"prompt": TEMPLATE, "box": {"x": 0.0, "y": 0.0, "width": 0.5, "height": 0.5}}
    assert (await drawn(running, seed=2, regions=[region]))["regions"][0]["prompt"] == first["prompt"]
    assert (await drawn(running, "{a|a} # {b", seed=2))["prompt"] == "a "  # a comment is none of it
    (folder / "colours.txt").write_text("purple\n")
    assert (await drawn(running, seed=2))["prompt"].endswith(" purple circle")
    plain = await running.generate(TEMPLATE, **SMALL, seed=2)
    assert plain.json()["status"] == "complete", plain.text
    assert (await running.newest()).request["prompt"] == TEMPLATE


async def test_a_seed_that_is_drawn_is_the_one_that_chooses(running: Front) -> None:
    await running.generate(TEMPLATE, **SMALL, dynamic_prompts=True)
    request = (await running.newest()).request
    wildcards = {"colours": ("red", "blue", "{dark|light} green")}
    assert request["prompt"] == expanded("prompt", TEMPLATE, request["seed"], wildcards)


async def test_the_same_request_under_a_key_is_one_job(running: Front) -> None:
    headers = {"idempotency-key": "one", "prefer": "wait=30"}
    body = {"prompt": TEMPLATE, **SMALL, "dynamic_prompts": True}
    first, second = [await running.http.post("/generate", json=body, headers=headers) for _ in range(2)]
    assert first.json()["job_id"] == second.json()["job_id"]


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"prompt": "a {b"}, "prompt", "without its }"),
        ({"negative_prompt": "__none__"}, "negative_prompt", "names the wildcard 'none'"),
        ({"hires": {"scale": 2.0, "prompt": "{"}}, "hires.prompt", "without its }"),
        ({"prompt": "{a}" * 700}, "prompt", "2100 characters, at most 2000"),
    ],
)
async def test_what_cant_be_chosen_is_refused(running: Front, fields: dict[str, Any], field: str, message: str) -> None:
    request = {"prompt": "a circle", **SMALL, "dynamic_prompts": True, **fields}
    axes = [{"field": "seed", "values": [2, 4]}]
    for answer in (
        await running.http.post("/generate", json=request),
        await running.http.post("/batches", json={"request": request, "axes": axes}),
    ):
        assert answer.status_code == 422, answer.text
        error = answer.json()["error"]
        assert (error["field"], message in error["message"]) == (field, True), error


async def test_a_batch_has_a_choice_for_each_seed(running: Front) -> None:
    axes = [{"field": "seed", "values": [2, 4, 6, 8]}, {"field": "dynamic_prompts", "values": [True, False]}]
    body = {"request": {"prompt": TEMPLATE, **SMALL}, "axes": axes}
    accepted = await running.http.post("/batches", json=body)
    assert accepted.status_code == 202, accepted.text
    async with asyncio.timeout(60):
        while (batch := (await running.http.get(f"/batches/{accepted.json()['batch_id']}")).json())["completed"] < 8:
            assert batch["failed"] == 0, batch
            await asyncio.sleep(0.05)
    requests = [(await running.service.store.get(cell["job_id"])).request for cell in batch["cells"]]
    for request in requests[:4]:
        assert (await drawn(running, seed=request["seed"]))["prompt"] == request["prompt"]
    assert {request["prompt"] for request in requests[4:]} == {TEMPLATE}


async def test_the_list(running: Front) -> None:
    assert (await running.http.get("/models")).json()["wildcards"] == ["colours"]
