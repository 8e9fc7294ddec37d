"""`Idempotency-Key` on POST /generate: a client that doesn't know whether it was heard may just ask again."""

import asyncio
from typing import Any

import httpx
import pytest

from serve_app.api.service import RequestOrigin
from serve_app.auth.caller import batch_caller
from serve_app.config.settings import Settings
from serve_app.schemas.generation_request import GenerationRequest, HiresRequest
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front


async def ask(running: Front, key: str | bytes, wait: int | None = None, **fields: Any) -> httpx.Response:
    headers = {"Idempotency-Key": key, **({} if wait is None else {"prefer": f"wait={wait}"})}
    return await running.http.post("/generate", json={"prompt": "a red circle", **fields}, headers=headers)  # type: ignore[arg-type]


async def test_a_hundred_identical_requests_at_once_are_one_job(running: Front) -> None:
    answers = await asyncio.gather(*(ask(running, "one") for _ in range(100)))
    assert {answer.status_code for answer in answers} <= {200, 202}
    assert len({answer.json()["job_id"] for answer in answers}) == 1
    assert len({answer.headers["location"] for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert len((await running.http.get("/jobs")).json()["jobs"]) == 1


async def test_a_repetition_is_answered_as_its_job_stands(running: Front) -> None:
    first = await ask(running, "k", wait=30)
    assert first.status_code == 200
    assert "idempotent-replayed" not in first.headers
    again = await ask(running, "k")
    assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")
    assert again.json() == first.json()

    endless = await ask(running, "e", prompt="endless")
    again = await ask(running, "e", prompt="endless")
    assert (again.status_code, again.headers["idempotent-replayed"]) == (202, "true")
    assert again.json()["job_id"] == endless.json()["job_id"]


async def test_what_was_spelt_out_is_the_same_as_what_was_left_to_the_defaults(running: Front) -> None:
    first = await ask(running, "k")
    again = await ask(running, "k", negative_prompt="", n=1)
    assert again.json()["job_id"] == first.json()["job_id"]


async def test_another_request_under_the_same_key_is_refused(running: Front) -> None:
    await ask(running, "k", seed=1)
    refused = await ask(running, "k", seed=2)
    assert refused.status_code == 422
    assert refused.json()["error"]["code"] == "idempotency_mismatch"
    assert (await ask(running, "K", seed=2)).status_code == 202


@pytest.mark.parametrize("key", ["", "k" * 256, "tab\there", "ä".encode()])
async def test_a_key_that_is_none_is_refused(running: Front, key: str | bytes) -> None:
    refused = await ask(running, key)
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "Idempotency-Key")
    assert (await running.http.get("/jobs")).json()["jobs"] == []


async def test_two_keys_in_one_request_are_refused(running: Front) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    refused = await running.http.post("/generate", json={"prompt": "a"}, headers=headers)
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "Idempotency-Key")


async def test_a_repetition_after_a_restart_finds_its_job(settings: Settings, stages: Stages) -> None:
    async with front(settings, stages) as before:
        first = await ask(before, "k", prompt="endless")
    async with front(settings, stages) as after:
        again = await ask(after, "k", prompt="endless")
    assert again.json()["job_id"] == first.json()["job_id"]
    assert again.headers["idempotent-replayed"] == "true"


class LaterHires(HiresRequest):
    new_number: int = 3


class LaterRequest(GenerationRequest):
    """The request of a later version, which has more fields."""

    hires: LaterHires | None = None
    new_number: int = 3


async def test_a_repetition_after_an_upgrade_with_more_fields_finds_its_job(settings: Settings, stages: Stages) -> None:
    origin = RequestOrigin(batch_caller("id"), "k")
    body = {"prompt": "endless", "hires": {"scale": 1.5}}
    async with front(settings, stages) as before:
        first, _ = await before.service.accept(GenerationRequest.model_validate(body), origin)
    async with front(settings, stages) as after:
        again, replayed = await after.service.accept(LaterRequest.model_validate(body), origin)
    assert (again.id, replayed) == (first.id, True)
