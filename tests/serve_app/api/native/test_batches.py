"""POST /batches and what follows: the matrix drawn, its contact sheet, its archive; the stages are stand-ins."""

import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from serve_app.config.settings import Settings
from serve_app.jobs.states import JobState
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front, until
from tests.serve_app.images.manifest_files import read_manifest
from tests.serve_app.images.pictures import gradient, sent
from tests.serve_app.keyed import GENERATE_READ, bearer, with_keys
from tests.serve_app.lost_answers import Network

ENDS = ("completed", "failed", "expired", "cancelled")
REQUEST = {"prompt": "a red circle", "steps": 10}


@pytest.fixture
def raw_settings(raw_settings: dict[str, Any]) -> dict[str, Any]:
    raw_settings["jobs"] |= {"heartbeat_s": 0.1}
    return raw_settings | {
        "batches": {"poll_s": 0.05, "in_flight": 4, "max_lines": 50},
        "a1111": {"styles": {"studio": {"prompt": "{prompt}, studio light", "negative_prompt": "blurry"}}},
    }


@pytest.fixture
async def running(settings: Settings, stages: Stages) -> AsyncIterator[Front]:
    async with front(settings, stages) as one:
        await one.batches.start()
        yield one
        one.batches.check()


async def created(running: Front, *axes: dict[str, Any], request: dict[str, Any] = REQUEST, **fields: Any) -> str:
    body = {"request": request, "axes": list(axes), **fields}
    answer = await running.http.post("/batches", json=body)
    assert answer.status_code == 202, answer.text
    batch_id: str = answer.json()["batch_id"]
    return batch_id


async def ended(running: Front, batch_id: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            batch: dict[str, Any] = (await running.http.get(f"/batches/{batch_id}")).json()
            if batch["status"] in ENDS:
                return batch
            await asyncio.sleep(0.05)


async def sheet_of(running: Front, batch_id: str, **query: int) -> Image.Image:
    answer = await running.http.get(f"/batches/{batch_id}/sheet", params=query)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png"), answer.text
    return Image.open(io.BytesIO(answer.content))


async def test_a_matrix_is_drawn_cell_by_cell(running: Front) -> None:
    batch_id = await created(
        running,
        {"field": "seed", "values": [2, 4, 5]},
        {"replace": "red", "values": ["red", "green"], "label": "colour"},
        {"field": "scheduler", "values": ["euler", "no such sampler"]},
        styles=["studio"],
        name="circles",
    )
    batch = await ended(running, batch_id)
    assert (batch["status"], batch["name"], batch["total"], batch["fraction"]) == ("completed", "circles", 12, 1.0)
    assert (batch["completed"], batch["failed"], batch["unfinished"]) == (4, 8, 0)  # odd seeds are unsafe
    assert batch["device_seconds"] > 0
    assert batch["axes"] == [
        {"name": "seed", "values": ["2", "4", "5"]},
        {"name": "colour", "values": ["red", "green"]},
        {"name": "scheduler", "values": ["euler", "no such sampler"]},
    ]
    cells = batch["cells"]
    assert [cell["status"] for cell in cells] == ["complete", "complete", "blocked"] * 2 + ["refused"] * 6
    assert {cell["error"]["code"] for cell in cells[6:]} == {"unknown_sampler"}
    assert cells[4]["places"] == [1, 1, 0]
    file = (await running.http.get(cells[4]["image_url"])).content
    manifest = read_manifest(file)
    assert manifest is not None
    assert (manifest.prompt, manifest.negative_prompt) == ("a green circle, studio light", "blurry")
    assert (manifest.seed, manifest.sampler) == (4, "euler")
    job = await running.service.store.get(cells[4]["job_id"])
    assert job.request["priority"] == "batch"

    sheet = np.asarray(await sheet_of(running, batch_id, side=64))
    assert {(2, 2, 2), (4, 4, 4)} <= {tuple(pixel) for pixel in sheet.reshape(-1, 3)}
    # what is unsafe isn't shown: its cells would be full of this (letters have some)
    assert np.all(sheet == (5, 5, 5), axis=-1).sum() < 64

    async with running.http.stream("GET", f"/batches/{batch_id}/images") as answer:
        archive = zipfile.ZipFile(io.BytesIO(b"".join([part async for part in answer.aiter_bytes()])))
    assert archive.testzip() is None
    names = ["00000-0.png", "00001-0.png", "00003-0.png", "00004-0.png"]
    assert archive.namelist() == [*names, "images.json"]
    assert archive.read(names[3]) == file
    listed = json.loads(archive.read("images.json"))
    assert listed[3] == {
        "file": "00004-0.png",
        "cell": "seed: 4, colour: green, scheduler: euler",
        "seed": 4,
    }


async def test_cells_without_a_seed_share_one(running: Front) -> None:
    batch_id = await created(running, {"field": "guidance_scale", "values": [3.0, 4.0, 5.0]})
    batch = await ended(running, batch_id)
    jobs = await running.service.store.known([cell["job_id"] for cell in batch["cells"]])
    assert {job.request["seed"] for job in jobs.values()} == {batch["request"]["seed"]}


async def test_a_matrix_that_is_sent_again_is_one_batch(running: Front) -> None:
    body: dict[str, Any] = {"request": REQUEST, "axes": [{"field": "steps", "values": [10, 11]}]}
    first, again = [
        await running.http.post("/batches", json=body, headers={"idempotency-key": "mine"}) for _ in range(2)
    ]
    assert first.json()["batch_id"] == again.json()["batch_id"]
    assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")
    batch = await ended(running, first.json()["batch_id"])
    assert (batch["status"], batch["total"]) == ("completed", 2)
    assert len((await running.http.get("/batches")).json()["batches"]) == 1
    body["axes"][0]["values"] = [10, 12]
    refused = await running.http.post("/batches", json=body, headers={"idempotency-key": "mine"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_mismatch")


async def test_a_matrix_may_begin_with_a_picture(running: Front) -> None:
    request = {**REQUEST, "image": sent(gradient(256, 256)), "seed": 2}
    batch_id = await created(running, {"field": "strength", "values": [0.3, 0.9]}, request=request)
    batch = await ended(running, batch_id)
    assert (batch["completed"], batch["request"]["image"]) == (2, "…")


async def test_a_cancel_takes_effect_at_once(running: Front) -> None:
    request = {"prompt": "endless", "seed": 2}
    batch_id = await created(running, {"field": "steps", "values": list(range(10, 30))}, request=request)
    await until(lambda: running.service.runner.depth()[1] == 4)
    cancelled = await running.http.delete(f"/batches/{batch_id}")
    assert cancelled.json()["status"] == "cancelling"
    batch = await ended(running, batch_id)
    assert (batch["status"], batch["failed"]) == ("cancelled", 0)
    assert [cell["status"] for cell in batch["cells"]] == ["cancelled"] * 4 + ["waiting"] * 16
    states = {job.state for job in (await running.service.store.page(tenant=None, limit=100)).jobs}
    assert states == {JobState.CANCELLED}
    await sheet_of(running, batch_id)


async def test_lists_and_pages_of_cells(running: Front) -> None:
    ids = [await created(running, {"field": "seed", "values": [2, 4, 6]}, name=str(number)) for number in range(3)]
    for batch_id in ids:
        await ended(running, batch_id)
    page = (await running.http.get("/batches", params={"limit": 2})).json()
    assert [batch["batch_id"] for batch in page["batches"]] == [ids[2], ids[1]]
    page = (await running.http.get("/batches", params={"limit": 2, "cursor": page["next_cursor"]})).json()
    assert ([batch["batch_id"] for batch in page["batches"]], page["next_cursor"]) == ([ids[0]], None)
    part = (await running.http.get(f"/batches/{ids[0]}", params={"offset": 1, "limit": 1})).json()
    assert [cell["index"] for cell in part["cells"]] == [1]
    assert not (await running.http.get("/v1/batches")).json()["data"]  # those are OpenAI's
    assert (await running.http.get("/v1/batches/batch_" + ids[0])).status_code == 404
    assert not (await running.http.get("/v1/files")).json()["data"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"axes": [{"field": "seed", "values": list(range(51))}]}, "axes"),
        ({"request": {"prompt": "x", "webhook_url": "https://hooks.example.com/x"}}, "webhook_url"),
        ({"styles": ["oil"]}, "styles"),
        ({"window_s": 0}, "window_s"),
        ({"more": 1}, "more"),
    ],
)
async def test_what_is_no_batch(running: Front, change: dict[str, Any], field: str) -> None:
    body = {"request": REQUEST, "axes": [{"field": "seed", "values": [2]}], **change}
    answer = await running.http.post("/batches", json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field), answer.text
    assert await running.service.images.files_by_job() == {}


async def test_batches_are_one_s_own(raw_settings: dict[str, Any], stages: Stages, tmp_path: Path) -> None:
    keys = with_keys(raw_settings, tmp_path / "keys", alice=GENERATE_READ, bob=GENERATE_READ)
    async with front(Settings.model_validate(raw_settings), stages) as one:
        await one.batches.start()
        alice, bob = (
            httpx.AsyncClient(transport=one.http._transport, base_url="http://darkroom", headers=bearer(keys[name]))
            for name in ("alice", "bob")
        )
        body = {"request": REQUEST, "axes": [{"field": "seed", "values": [2]}]}
        batch_id = (await alice.post("/batches", json=body)).json()["batch_id"]
        await until(lambda: not one.batches._held and one.service.runner.depth() == (0, 0))
        assert (await bob.get("/batches")).json()["batches"] == []
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/sheet"), ("GET", "/images")):
            answer = await bob.request(method, f"/batches/{batch_id}{path}")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_batch"), path
            assert (await alice.request(method, f"/batches/{batch_id}{path}")).is_success, path


async def test_a_batch_whose_answer_is_lost_keeps_its_matrix(
    raw_settings: dict[str, Any], stages: Stages, lossy_url: str, network: Network
) -> None:
    """The database has stored the batch, and nobody knows."""
    raw_settings["jobs"] |= {"database_url": lossy_url}
    body = {"request": REQUEST | {"seed": 2}, "axes": [{"field": "steps", "values": [10, 12]}]}
    headers = {"Idempotency-Key": "one"}
    async with front(Settings.model_validate(raw_settings), stages) as running:
        network.loses = b"INSERT INTO batches"
        lost = await running.http.post("/batches", json=body, headers=headers)
        assert (lost.status_code, network.lost.is_set()) == (503, True), lost.text
        again = await running.http.post("/batches", json=body, headers=headers)
        assert (again.status_code, again.headers.get("idempotent-replayed")) == (202, "true"), again.text
        assert len(await running.service.images.files_by_job()) == 1
        await running.batches.start()
        batch = await ended(running, again.json()["batch_id"])
        assert (batch["status"], batch["completed"]) == ("completed", 2)
