"""OpenAI's Batch API with OpenAI's own package, over real HTTP; the stages are stand-ins."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI
from PIL import Image

from serve_app.api.openai import batches
from serve_app.config.settings import Settings
from serve_app.jobs.job import Job
from serve_app.jobs.states import JobState
from serve_app.stages.client import Stages
from tests.serve_app.api.openai.batch_client import (
    EDITS,
    GENERATIONS,
    POLL_S,
    answers,
    created,
    driving,
    ended,
    jsonl,
    line,
)
from tests.serve_app.front import Front, front, until
from tests.serve_app.images.pictures import file_of, gradient
from tests.serve_app.keyed import GENERATE_READ, with_keys
from tests.serve_app.served import served


@pytest.fixture
def raw_settings(raw_settings: dict[str, Any]) -> dict[str, Any]:
    raw_settings["jobs"] |= {"heartbeat_s": 0.1}
    return raw_settings | {"batches": {"poll_s": POLL_S, "in_flight": 4, "max_lines": 200, "max_line_bytes": 100_000}}


@pytest.fixture
async def client(url: str, running: Front) -> AsyncIterator[AsyncOpenAI]:
    async with driving(running), AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as one:
        yield one


async def jobs_of(running: Front) -> list[Job]:
    """All jobs, the oldest first."""
    jobs, cursor = [], None
    while True:
        page = await running.service.store.page(tenant=None, limit=100, cursor=cursor)
        jobs += page.jobs
        if (cursor := page.next_cursor) is None:
            return jobs[::-1]


async def test_every_line_is_answered_in_its_order(client: AsyncOpenAI, running: Front, url: str) -> None:
    lines = [
        line("first", seed=2, n=1, quality="hd"),
        line("by address", seed=4, response_format="url", output_format="webp"),
        line("unsafe", seed=3),
        line("unknown", model="dall-e-9"),
        line("wrong", seed=2, size="1x1"),
        line("own fields", seed=6, steps=10, model="demo-sdxl", size="384x256", priority="interactive", user="me"),
        line("a stream", seed=2, stream=True),
        line("several", seed=8, n=3),
        line("broken", prompt="poison", seed=2),
    ]
    batch = await created(client, jsonl(lines), metadata={"name": "circles"})
    assert (batch.object, batch.endpoint, batch.completion_window) == ("batch", "/v1/images/generations", "24h")
    assert batch.expires_at is not None
    assert batch.expires_at - batch.created_at == 86_400
    batch = await ended(client, batch)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 9, "completed": 4, "failed": 5}
    assert batch.metadata == {"name": "circles"}
    times = (batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at)
    assert list(times) == sorted(moment or 0 for moment in times)
    assert batch.failed_at is batch.expired_at is batch.cancelled_at is batch.cancelling_at is batch.errors is None
    assert (batch.to_dict()["device_seconds"]) > 0

    output = await answers(client, batch.output_file_id)
    assert [one["custom_id"] for one in output] == ["first", "by address", "own fields", "several"]
    assert len({one["id"] for one in output}) == 4
    for one in output:
        assert one.keys() == {"id", "custom_id", "response", "error"}
        assert one["response"].keys() == {"status_code", "request_id", "body"}
        assert (one["response"]["status_code"], one["error"]) == (200, None)
    first, by_address, own, several = (one["response"]["body"] for one in output)
    picture = Image.open(io.BytesIO(base64.b64decode(first["data"][0]["b64_json"])))
    assert picture.getpixel((0, 0)) == (2, 2, 2)
    assert first["warnings"] == ["quality has no effect here"]
    async with httpx.AsyncClient() as http:
        fetched = await http.get(by_address["data"][0]["url"])
    assert by_address["data"][0]["url"].startswith(url)
    assert (fetched.status_code, fetched.headers["content-type"]) == (200, "image/webp")
    assert (own["size"], own["safety_identifier"]) == ("384x256", "me")
    assert [image["seed"] for image in several["data"]] == [8, 10]  # the safety layers withhold an odd seed

    errors = await answers(client, batch.error_file_id)
    told = {one["custom_id"]: (one["response"]["status_code"], one["response"]["body"]["error"]) for one in errors}
    assert list(told) == ["unsafe", "unknown", "wrong", "a stream", "broken"]
    assert {name: (status, error["code"]) for name, (status, error) in told.items()} == {
        "unsafe": (400, "moderation_blocked"),
        "unknown": (404, "model_not_found"),
        "wrong": (400, "invalid_request"),
        "a stream": (400, "invalid_request"),
        "broken": (500, "numerical_failure"),
    }
    assert (told["wrong"][1]["param"], told["a stream"][1]["param"]) == ("size", "stream")
    # every job of a batch yields to other requests, and has all the time that a request may have
    jobs = await jobs_of(running)
    assert len(jobs) == 6
    assert {job.request["priority"] for job in jobs} == {"batch"}
    assert {job.request["timeout_s"] for job in jobs} == {running.service.settings.limits.max_timeout_s}
    for file_id in (batch.output_file_id, batch.error_file_id):
        assert file_id is not None
        assert (await client.files.retrieve(file_id)).purpose == "batch_output"


async def test_a_batch_that_is_sent_again_is_one(client: AsyncOpenAI, running: Front) -> None:
    file = await client.files.create(file=("lines.jsonl", jsonl([line("a", seed=2)])), purpose="batch")
    asked: Any = {"input_file_id": file.id, "endpoint": GENERATIONS, "completion_window": "24h"}
    named = {"Idempotency-Key": "circles of today"}
    several = await asyncio.gather(
        *(client.batches.with_raw_response.create(**asked, extra_headers=named) for _ in range(4))
    )
    assert len({one.parse().id for one in several}) == 1
    assert [one.headers.get("idempotent-replayed") for one in several].count("true") == 3
    batch = await ended(client, several[0].parse())
    assert [one.id for one in (await client.batches.list()).data] == [batch.id]
    again = await client.batches.create(**asked, extra_headers=named)  # also after its end
    assert (again.id, again.status) == (batch.id, "completed")
    with pytest.raises(openai.BadRequestError, match="has been used for another request"):
        await client.batches.create(**asked, metadata={"name": "others"}, extra_headers=named)
    with pytest.raises(openai.BadRequestError, match="has been used for another request"):
        await client.images.generate(prompt="a red circle", extra_headers=named)
    assert (await client.batches.create(**asked)).id != batch.id
    await running.service.store.batches.delete(await running.service.store.batches.get(batch.id.removeprefix("batch_")))
    assert (await client.batches.create(**asked, extra_headers=named)).id != batch.id  # it is free with its batch


async def test_so_many_lines_are_jobs_at_a_time(raw_settings: dict[str, Any], stages: Stages) -> None:
    raw_settings["jobs"] |= {"max_queued": 6}  # of which batches fill three
    settings = Settings.model_validate(raw_settings)
    async with front(settings, stages) as one, served(one) as url, driving(one):
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            batch = await created(client, jsonl(line(str(number), seed=2 * number) for number in range(60)))
            batch = await ended(client, batch)
            output = await answers(client, batch.output_file_id)
        assert [one["custom_id"] for one in output] == [str(number) for number in range(60)]
        jobs = await jobs_of(one)
        assert len(jobs) == 60
        spans = [(job.created_at, job.finished_at) for job in jobs]
        for begun, _ in spans:
            assert sum(start <= begun and (end is None or begun < end) for start, end in spans) <= 3


async def test_a_cancel_takes_effect_at_once(client: AsyncOpenAI, running: Front) -> None:
    lines = [line("drawn", seed=2), *(line(str(number), prompt="endless", seed=2) for number in range(20))]
    batch = await created(client, jsonl(lines))
    await until(lambda: running.service.runner.depth()[1] == 4)
    cancelled = await client.batches.cancel(batch.id)
    assert cancelled.status == "cancelling"
    assert cancelled.cancelling_at is not None
    batch = await ended(client, batch)
    assert (batch.status, batch.cancelled_at is not None, batch.completed_at) == ("cancelled", True, None)
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 21, "completed": 1, "failed": 0}
    assert [one["custom_id"] for one in await answers(client, batch.output_file_id)] == ["drawn"]
    errors = await answers(client, batch.error_file_id)
    assert [one["custom_id"] for one in errors] == [str(number) for number in range(20)]
    assert {(one["response"], one["error"]["code"]) for one in errors} == {(None, "batch_cancelled")}
    jobs = await jobs_of(running)
    assert [job.state for job in jobs] == [JobState.COMPLETE, *[JobState.CANCELLED] * 4]
    assert (await client.batches.cancel(batch.id)).status == "cancelled"  # once more is no error


async def test_what_isn_t_drawn_in_time_expires(
    client: AsyncOpenAI, running: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_WINDOW_S", 2.0)
    lines = [line("drawn", seed=2), *(line(str(number), prompt="endless", seed=2) for number in range(5))]
    batch = await ended(client, await created(client, jsonl(lines)))
    assert (batch.status, batch.expired_at is not None, batch.completed_at) == ("expired", True, None)
    assert [one["custom_id"] for one in await answers(client, batch.output_file_id)] == ["drawn"]
    errors = await answers(client, batch.error_file_id)
    assert [one["error"]["code"] for one in errors] == ["batch_expired"] * 5
    assert {job.state for job in await jobs_of(running)} == {JobState.COMPLETE, JobState.CANCELLED}


@pytest.mark.parametrize(
    ("content", "problems"),
    [
        (b"\n\n ", [("empty_file", None, "the file holds no requests")]),
        (b"{", [("invalid_json_line", 1, "isn't JSON")]),
        (b"[1]", [("invalid_json_line", 1, "must be a JSON object, not array")]),
        (
            jsonl([line("a"), {}, line("a"), line("b", url=EDITS), {**line("c"), "method": "GET"}, line("d")]),
            [
                ("invalid_request", 2, "custom_id is missing"),
                ("duplicate_custom_id", 3, "custom_id 'a' comes twice"),
                ("mismatched_url", 4, "the batch is of /v1/images/generations"),
                ("invalid_request", 5, "method is 'GET'"),
            ],
        ),
        (jsonl(line(str(number)) for number in range(201)), [("too_many_requests", 201, "more than 200 requests")]),
        (jsonl([line("a"), line("b", prompt="x" * 100_000)]), [("line_too_long", 2, "longer than 100000 bytes")]),
        (b"\xff\n", [("invalid_json_line", 1, "isn't JSON")]),
        (b"1\n" * 300, [("invalid_json_line", number + 1, "must be a JSON object") for number in range(100)]),
    ],
    ids=["nothing", "no JSON", "an array", "several", "too many", "too long", "no text", "only so many"],
)
async def test_a_file_that_is_no_batch(
    client: AsyncOpenAI, running: Front, content: bytes, problems: list[tuple[str, int | None, str]]
) -> None:
    batch = await ended(client, await created(client, content))
    assert (batch.status, batch.failed_at is not None, batch.output_file_id) == ("failed", True, None)
    assert batch.errors is not None
    data = batch.errors.data or []
    assert [(one.code, one.line) for one in data] == [(code, number) for code, number, _ in problems]
    for one, (_, _, message) in zip(data, problems, strict=True):
        assert message in (one.message or "")
    assert await jobs_of(running) == []


async def test_edits_take_data_urls_and_files(client: AsyncOpenAI, running: Front) -> None:
    picture = file_of(gradient(256, 256))
    half = Image.new("RGBA", (256, 256), "black")
    half.paste((0, 0, 0, 0), (0, 0, 128, 256))
    uploaded = await client.files.create(file=("x.png", picture), purpose="vision")
    mask = await client.files.create(file=("mask.png", file_of(half)), purpose="user_data")
    data_url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    lines = [
        line("data", EDITS, images=[{"image_url": data_url}], seed=2),
        line("file", EDITS, images=[{"file_id": uploaded.id}], mask={"file_id": mask.id}, seed=4),
        line("no file", EDITS, images=[{"file_id": "file-" + "0" * 32}]),
        line("no id", EDITS, images=[{"file_id": "../../etc/passwd"}]),
        line("a URL", EDITS, images=[{"image_url": "http://127.0.0.1:9/x.png"}]),
        line("nothing", EDITS),
    ]
    batch = await ended(client, await created(client, jsonl(lines), EDITS))
    output = await answers(client, batch.output_file_id)
    assert [one["custom_id"] for one in output] == ["data", "file"]
    errors = await answers(client, batch.error_file_id)
    assert {one["custom_id"]: one["response"]["status_code"] for one in errors} == {
        "no file": 404,
        "no id": 404,
        "a URL": 400,
        "nothing": 400,
    }
    begun = [job.request["image"] is not None for job in await jobs_of(running)]
    assert begun == [True, True]


async def test_a_full_queue_keeps_lines_waiting(raw_settings: dict[str, Any], stages: Stages) -> None:
    raw_settings["jobs"] |= {"max_queued": 2}
    async with front(Settings.model_validate(raw_settings), stages) as one, served(one) as url, driving(one):
        for _ in range(2):
            await one.generate("endless", wait=None, seed=2)
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            batch = await created(client, jsonl([line("a", seed=2)]))
            async with asyncio.timeout(20):
                while (await client.batches.retrieve(batch.id)).status != "in_progress":  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)
            for job in await jobs_of(one):
                await one.service.cancel(job.id)
            batch = await ended(client, batch)
        assert (batch.status, batch.error_file_id) == ("completed", None)


async def test_lines_count_against_their_key(raw_settings: dict[str, Any], stages: Stages, tmp_path: Path) -> None:
    raw_settings["access"] = {"gpu_seconds": "1/hour", "generations": "3/hour"}
    keys = with_keys(raw_settings, tmp_path / "keys", alice=GENERATE_READ)
    async with front(Settings.model_validate(raw_settings), stages) as one, served(one) as url, driving(one):
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key=keys["alice"], max_retries=0) as client:
            batch = await created(client, jsonl(line(str(number), seed=2, steps=10) for number in range(9)))
            async with asyncio.timeout(20):
                while len(await jobs_of(one)) < 3 or one.service.runner.depth() != (0, 0):  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)
            with pytest.raises(openai.RateLimitError):
                await client.images.generate(prompt="a red circle")
            jobs = await jobs_of(one)
            assert len(jobs) == 3
            assert len({job.key_id for job in jobs} - {None}) == 1
            assert {job.tenant for job in jobs} == {"alice"}
            now = await client.batches.retrieve(batch.id)
            assert now.request_counts is not None
            assert (now.status, now.request_counts.failed) == ("in_progress", 0)
            # a key that is no good any more draws nothing
            (tmp_path / "keys").write_text("01234567 bob read sha256:" + "0" * 64)
            assert one.service.keys is not None
            one.service.keys.find("")
        batch_id = batch.id.removeprefix("batch_")
        await until(lambda: not one.batches._held, 20)
        ended_batch = await one.service.store.batches.get(batch_id)
        lines = await one.service.store.batches.lines(batch_id)
        assert (ended_batch.completed, ended_batch.failed) == (3, 6)
        assert {lines[number].error_code for number in range(3, 9)} == {"unauthenticated"}


async def test_batches_are_one_s_own(raw_settings: dict[str, Any], stages: Stages, tmp_path: Path) -> None:
    keys = with_keys(raw_settings, tmp_path / "keys", alice=GENERATE_READ, bob=GENERATE_READ)
    async with front(Settings.model_validate(raw_settings), stages) as one, served(one) as url, driving(one):
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key=keys["alice"], max_retries=0) as alice:
            batch = await ended(alice, await created(alice, jsonl([line("a", seed=2, response_format="url")])))
            [answer] = await answers(alice, batch.output_file_id)
            assert [found.id for found in (await alice.batches.list()).data] == [batch.id]
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key=keys["bob"], max_retries=0) as bob:
            assert not (await bob.batches.list()).data
            for call in (bob.batches.retrieve, bob.batches.cancel):
                with pytest.raises(openai.NotFoundError, match="no such batch"):
                    await call(batch.id)
            assert batch.output_file_id is not None
            with pytest.raises(openai.NotFoundError):
                await bob.files.content(batch.output_file_id)
        async with httpx.AsyncClient() as http:  # its address is signed
            assert (await http.get(answer["response"]["body"]["data"][0]["url"])).status_code == 200


async def test_a_job_that_its_client_has_deleted_is_answered(client: AsyncOpenAI, running: Front) -> None:
    batch = await created(client, jsonl([line("a", seed=2), line("b", prompt="endless", seed=2)]))

    async def first() -> Job:
        async with asyncio.timeout(20):
            while True:
                jobs = await jobs_of(running)
                if jobs and jobs[0].state is JobState.COMPLETE:
                    return jobs[0]
                await asyncio.sleep(POLL_S)

    await running.service.forget((await first()).id)
    await until(lambda: running.service.runner.depth()[1] == 1)
    await running.service.cancel((await jobs_of(running))[-1].id)
    batch = await ended(client, batch)
    assert (batch.status, batch.output_file_id) == ("completed", None)
    errors = await answers(client, batch.error_file_id)
    told = [(one["custom_id"], one["response"]["status_code"]) for one in errors]
    assert told == [("a", 404), ("b", 409)]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/chat/completions"}, "endpoint"),
        ({"completion_window": "48h"}, "completion_window"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"input_file_id": "file-1"}, "input_file_id"),
        ({"more": 1}, "more"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
async def test_what_is_no_batch(running: Front, fields: dict[str, Any], param: str) -> None:
    body = {"input_file_id": "file-" + "0" * 32, "endpoint": "/v1/images/generations", "completion_window": "24h"}
    answer = await running.http.post("/v1/batches", json=body | fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), error
