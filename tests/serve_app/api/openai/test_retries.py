"""OpenAI's own package repeats what it got no answer to: that is one request, and who asks twice makes two."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI
from PIL import Image

from serve_app.config.settings import Settings
from serve_app.jobs.job import Job
from serve_app.jobs.states import JobState
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front, until
from tests.serve_app.keyed import GENERATE_READ, bearer, with_keys
from tests.serve_app.served import beside, served

# half a second of drawing
BODY = {"prompt": "slow", "seed": 2, "steps": 10}
FIRST, AGAIN = ({"x-stainless-retry-count": str(number)} for number in (0, 1))


async def jobs_of(running: Front) -> list[Job]:
    return list((await running.service.store.page(tenant=None, limit=100)).jobs)


def shade(answer: Any) -> Any:
    """Of the picture: the stand-ins paint the seed."""
    [image] = answer.data
    return Image.open(io.BytesIO(base64.b64decode(image.b64_json))).getpixel((0, 0))[0]  # type: ignore[index]


@asynccontextmanager
async def breaking(running: Front, url: str, first: int) -> AsyncIterator[str]:
    """A relay in front of `url` that breaks the first connections, as soon as each has become a job."""
    opened = 0
    host, _, port = url.removeprefix("http://").partition(":")

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(1 << 16):
            sink.write(data)
            await sink.drain()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal opened
        opened += 1
        breaks = opened <= first
        upstream, onward = await asyncio.open_connection(host, int(port))
        pumps = {asyncio.create_task(pump(reader, onward)), asyncio.create_task(pump(upstream, writer))}
        if breaks:
            await until(lambda: sum(running.service.runner.depth()) == first)
        else:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for task in pumps:
            task.cancel()
        for end in (writer, onward):
            end.close()
        await asyncio.gather(*pumps, return_exceptions=True)

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def sdk(url: str, **settings: Any) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="none", **settings)


async def lose(running: Front, url: str, body: dict[str, Any], headers: dict[str, str]) -> Job:
    """A request whose client goes as soon as it is a job."""
    before = {job.id for job in await jobs_of(running)}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
        asking = asyncio.create_task(http.post("/v1/images/generations", json=body))
        depth = sum(running.service.runner.depth())
        await until(lambda: sum(running.service.runner.depth()) > depth)
        asking.cancel()
    [job] = [job for job in await jobs_of(running) if job.id not in before]
    return job


async def ask(url: str, body: dict[str, Any], headers: dict[str, str]) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
        return await http.post("/v1/images/generations", json=body)


async def test_a_broken_connection_is_repeated_by_the_sdk_and_stays_one_job(running: Front, url: str) -> None:
    async with breaking(running, url, 1) as broken, sdk(broken) as client:
        answer = await client.images.with_raw_response.generate(prompt="slow", extra_body={"seed": 4, "steps": 20})
    assert (answer.retries_taken, answer.headers["idempotent-replayed"]) == (1, "true")
    assert shade(answer.parse()) == 4
    [job] = await jobs_of(running)
    assert (job.state, job.attempts) == (JobState.COMPLETE, 1)


async def test_in_a_blocking_client_too(running: Front, url: str) -> None:
    async with breaking(running, url, 1) as broken:

        def call() -> Any:
            with OpenAI(base_url=f"{broken}/v1", api_key="none") as client:
                return client.images.generate(prompt="slow", extra_body={"seed": 4, "steps": 10})

        assert shade(await beside(call)) == 4
    assert len(await jobs_of(running)) == 1


async def test_a_client_that_waits_too_short_gets_the_picture_in_the_end(running: Front, url: str) -> None:
    async with sdk(url, timeout=0.4, max_retries=9) as client:
        answer = await client.images.with_raw_response.generate(prompt="slow", extra_body={"seed": 4, "steps": 20})
    assert answer.retries_taken > 0
    assert shade(answer.parse()) == 4
    assert len(await jobs_of(running)) == 1


async def test_asking_twice_makes_two_pictures_also_when_both_connections_break(running: Front, url: str) -> None:
    async with breaking(running, url, 2) as broken, sdk(broken) as client:
        same = {"prompt": "slow", "extra_body": {"seed": 4, "steps": 20}}
        answers = await asyncio.gather(*(client.images.with_raw_response.generate(**same) for _ in range(2)))
    assert [answer.retries_taken for answer in answers] == [1, 1]
    assert [job.state for job in await jobs_of(running)] == [JobState.COMPLETE] * 2


async def test_identical_first_tries_are_requests_of_their_own(running: Front, url: str) -> None:
    answers = await asyncio.gather(*(ask(url, BODY, FIRST) for _ in range(2)))
    answers.append(await ask(url, BODY, AGAIN))  # of a request that was refused before it was a job, say
    assert {answer.status_code for answer in answers} == {200}
    assert len(await jobs_of(running)) == 3


async def test_a_lost_job_is_taken_by_one_retry_alone(running: Front, url: str) -> None:
    lost = await lose(running, url, BODY, FIRST)
    answers = [await ask(url, BODY, headers) for headers in (FIRST, AGAIN, AGAIN)]
    assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, "true", None]
    made = await jobs_of(running)
    assert len(made) == 3
    assert next(job for job in made if job.id == lost.id).state is JobState.COMPLETE


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({**BODY, "seed": 4}, {}),
        ({**BODY, "user": "another"}, {}),
        (BODY, {"user-agent": "AsyncOpenAI/Python 1"}),
        (BODY, {"x-stainless-os": "Linux"}),
        (BODY, {"authorization": "Bearer another"}),
        (BODY, {"x-stainless-retry-count": "none"}),
        ({**BODY, "stream": True}, {}),
    ],
)
async def test_another_client_s_retry_or_one_of_another_request_takes_nothing(
    running: Front, url: str, body: dict[str, Any], headers: dict[str, str]
) -> None:
    lost = await lose(running, url, BODY, FIRST)
    assert (await ask(url, body, AGAIN | headers)).status_code == 200
    assert len(await jobs_of(running)) == 2
    taken = await ask(url, BODY, AGAIN | {"x-stainless-read-timeout": "9"})
    assert taken.headers["idempotent-replayed"] == "true"
    assert len(await jobs_of(running)) == 2
    assert (await running.service.store.get(lost.id)).state is JobState.COMPLETE


async def test_a_lost_job_is_its_key_s(raw_settings: dict[str, Any], stages: Stages, tmp_path: Path) -> None:
    keys = with_keys(raw_settings, tmp_path / "keys", alice=GENERATE_READ, bob=GENERATE_READ)
    async with front(Settings.model_validate(raw_settings), stages) as one, served(one) as url:
        await lose(one, url, BODY, FIRST | bearer(keys["alice"]))
        answers = [await ask(url, BODY, AGAIN | bearer(keys[name])) for name in ("bob", "alice")]
    assert [answer.headers.get("idempotent-replayed") for answer in answers] == [None, "true"]


async def test_a_job_that_somebody_cancelled_is_not_drawn_again(running: Front, url: str) -> None:
    lost = await lose(running, url, BODY, FIRST)
    await running.http.delete(f"/jobs/{lost.id}")
    again = await ask(url, BODY, AGAIN)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "cancelled")
    assert len(await jobs_of(running)) == 1


async def test_a_job_that_failed_of_what_may_pass_is_drawn_again(running: Front, url: str) -> None:
    runner, body = running.service.runner, {"prompt": "endless"}
    lost = await lose(running, url, body, FIRST)
    await until(lambda: lost.id in runner.held())
    await running.service.store.fail(lost.id, runner.held()[lost.id], code="engine_stopped", message="gone")
    await lose(running, url, body, AGAIN)
    assert len(await jobs_of(running)) == 2


@pytest.mark.parametrize("window_s", [0, 0.2])
async def test_what_no_retry_takes_is_cancelled(raw_settings: dict[str, Any], stages: Stages, window_s: float) -> None:
    raw_settings["jobs"]["retry_window_s"] = window_s
    body = {"prompt": "endless", "seed": 2}
    async with front(Settings.model_validate(raw_settings), stages) as one, served(one) as url:
        lost = await lose(one, url, body, FIRST)
        await one.cancelled()
        assert (await one.service.store.get(lost.id)).state is JobState.CANCELLED
        asking = asyncio.create_task(ask(url, body, AGAIN))
        await until(lambda: sum(one.service.runner.depth()) == 1)
        asking.cancel()
        assert len(await jobs_of(one)) == 2


async def test_a_request_with_a_name_is_one_job_and_outlives_its_connection(running: Front, url: str) -> None:
    named = FIRST | {"idempotency-key": "mine"}
    lost = await lose(running, url, BODY, named)
    again = await ask(url, BODY, named)
    assert (again.status_code, again.headers["idempotent-replayed"]) == (200, "true")
    stream = await ask(url, {**BODY, "stream": True}, named)
    assert "image_generation.completed" in stream.text
    refused = await ask(url, {**BODY, "seed": 4}, named)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "idempotency_mismatch")
    assert [job.id for job in await jobs_of(running)] == [lost.id]


async def test_a_named_stream_that_is_left_is_kept(running: Front, url: str) -> None:
    named = {"idempotency-key": "mine"}
    lost = await lose(running, url, {**BODY, "stream": True}, named)
    answer = await ask(url, BODY, named)
    assert (answer.status_code, [job.id for job in await jobs_of(running)]) == (200, [lost.id])
