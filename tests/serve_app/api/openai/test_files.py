"""OpenAI's Files API with OpenAI's own package, over real HTTP."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front
from tests.serve_app.keyed import GENERATE_READ, bearer, with_keys
from tests.serve_app.lost_answers import Network
from tests.serve_app.served import beside, served

MOST = 10_000


@pytest.fixture
def raw_settings(raw_settings: dict[str, Any]) -> dict[str, Any]:
    return raw_settings | {"batches": {"max_file_bytes": MOST, "max_files": 4, "max_stored_bytes": 3 * MOST}}


@pytest.fixture
async def client(url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as one:
        yield one


async def test_a_file_s_whole_life(url: str, running: Front) -> None:
    content = bytes(range(256)) * 39

    def life() -> None:
        with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            file = client.files.create(file=("lines ä.jsonl", content), purpose="batch")
            assert re.fullmatch("file-[0-9a-f]{32}", file.id)
            assert (file.object, file.bytes, file.filename) == ("file", len(content), "lines ä.jsonl")
            assert (file.purpose, file.status) == ("batch", "processed")
            assert file.expires_at is not None
            assert file.expires_at - file.created_at == running.service.settings.jobs.result_ttl_s
            assert client.files.retrieve(file.id) == client.files.wait_for_processing(file.id) == file
            assert client.files.content(file.id).read() == content
            with client.files.with_streaming_response.content(file.id) as response:
                assert b"".join(response.iter_bytes(1000)) == content
                assert response.headers["content-length"] == str(len(content))
            deleted = client.files.delete(file.id)
            assert (deleted.id, deleted.deleted, deleted.object) == (file.id, True, "file")
            for gone in (client.files.retrieve, client.files.content, client.files.delete):
                with pytest.raises(openai.NotFoundError, match="no such file"):
                    gone(file.id)

    await beside(life)
    assert await running.service.images.files_by_job() == {}


async def test_lists_go_by_purpose_and_by_pages(client: AsyncOpenAI) -> None:
    made = [
        await client.files.create(file=("x", b"1"), purpose=purpose)
        for purpose in ("batch", "vision", "batch", "user_data")
    ]
    everything = await client.files.list(limit=2)
    assert [file.id async for file in everything] == [file.id for file in reversed(made)]
    assert everything.has_more
    oldest = await client.files.list(purpose="batch", order="asc")
    assert [file.id for file in oldest.data] == [made[0].id, made[2].id]
    assert not (await client.files.list(purpose="fine-tune")).data
    assert [file.id for file in (await client.files.list(after=made[1].id)).data] == [made[0].id]


async def test_a_file_has_the_life_that_its_client_says(client: AsyncOpenAI) -> None:
    file = await client.files.create(
        file=("x", b"1"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert file.expires_at == file.created_at + 3600
    with pytest.raises(openai.BadRequestError, match=r"expires_after\.seconds is '60'"):
        await client.files.create(
            file=("x", b"1"), purpose="batch", expires_after={"anchor": "created_at", "seconds": 60}
        )


async def test_bounds_are_named(client: AsyncOpenAI, running: Front) -> None:
    with pytest.raises(openai.APIStatusError, match=f"the file is longer than {MOST} bytes") as refused:
        await client.files.create(file=("x", b"x" * (MOST + 1)), purpose="batch")
    assert (refused.value.status_code, refused.value.code) == (413, "body_too_large")
    with pytest.raises(openai.BadRequestError, match="file is missing or empty"):
        await client.files.create(file=("x", b""), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="purpose is 'fine-tune'"):
        await client.files.create(file=("x", b"1"), purpose="fine-tune")
    for _ in range(3):
        await client.files.create(file=("x", b"x" * (MOST - 1)), purpose="batch")
    with pytest.raises(openai.RateLimitError, match=f"{3 * MOST - 3} bytes of files are uploaded, {3 * MOST}"):
        await client.files.create(file=("x", b"1234"), purpose="batch")
    await client.files.create(file=("x", b"1"), purpose="batch")
    with pytest.raises(openai.RateLimitError, match="4 files are uploaded, 4 are allowed"):
        await client.files.create(file=("x", b"1"), purpose="batch")
    assert len(await running.service.images.files_by_job()) == 4


async def test_a_file_may_be_longer_than_other_bodies(raw_settings: dict[str, Any], stages: Stages) -> None:
    raw_settings["batches"] = {"max_file_bytes": 5 << 20}
    content = b"x" * (5 << 20)
    async with front(Settings.model_validate(raw_settings), stages) as one, served(one) as url:
        assert one.service.settings.limits.max_body_bytes < len(content)
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            file = await client.files.create(file=("x", content), purpose="batch")
            assert (await client.files.content(file.id)).content == content
            with pytest.raises(openai.APIStatusError, match=f"longer than {5 << 20} bytes"):
                await client.files.create(file=("x", content + b"x"), purpose="batch")


FORM = {"content-type": "multipart/form-data; boundary=x"}
FILE = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n1\r\n'
PURPOSE = b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'


@pytest.mark.parametrize(
    ("headers", "body", "status", "message"),
    [
        (FORM, FILE + PURPOSE + b"--x--\r\n", 200, ""),  # in whatever order
        (FORM, PURPOSE + FILE, 400, "complete multipart form"),
        (FORM, PURPOSE + FILE + FILE + b"--x--\r\n", 400, "file comes twice"),
        (FORM, PURPOSE + PURPOSE + FILE + b"--x--\r\n", 400, "comes twice"),
        (FORM, FILE + b"--x--\r\n", 400, "purpose is missing"),
        (FORM, FILE.replace(b'"file"', b'"other"') + b"--x--\r\n", 400, "unknown file 'other'"),
        (FORM, PURPOSE.replace(b'"purpose"', b'"other"') + FILE + PURPOSE + b"--x--\r\n", 400, "unknown field"),
        (FORM, PURPOSE.replace(b"batch", b"\xff") + FILE + b"--x--\r\n", 400, "isn't UTF-8"),
        (FORM, PURPOSE.replace(b"batch", b"x" * 70_000) + b"--x--\r\n", 400, "the form's texts are longer"),
        ({"content-type": "multipart/form-data"}, FILE, 400, "its boundary"),
        ({"content-type": "application/json"}, b"{}", 415, "must be a form"),
    ],
)
async def test_forms(running: Front, headers: dict[str, str], body: bytes, status: int, message: str) -> None:
    answer = await running.http.post("/v1/files", content=body, headers=headers)
    assert (answer.status_code, message in answer.text) == (status, True), answer.text
    stored = await running.service.images.files_by_job()
    assert (sum(map(len, stored.values())) == 1) == (status == 200)


async def test_files_are_one_s_own(raw_settings: dict[str, Any], stages: Stages, tmp_path: Path) -> None:
    keys = with_keys(raw_settings, tmp_path / "keys", alice=GENERATE_READ, bob=GENERATE_READ)
    async with front(Settings.model_validate(raw_settings), stages) as one, served(one) as url:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key=keys["alice"], max_retries=0) as alice:
            file = await alice.files.create(file=("x", b"1"), purpose="batch")
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key=keys["bob"], max_retries=0) as bob:
            assert not (await bob.files.list()).data
            for call in (bob.files.retrieve, bob.files.content, bob.files.delete):
                with pytest.raises(openai.NotFoundError):
                    await call(file.id)
            with pytest.raises(openai.NotFoundError):
                await bob.batches.create(
                    input_file_id=file.id, endpoint="/v1/images/generations", completion_window="24h"
                )
        async with httpx.AsyncClient(base_url=url) as http:
            assert (await http.get(f"/v1/files/{file.id}", headers=bearer(keys["alice"]))).status_code == 200


async def test_what_is_no_id_of_a_file(running: Front) -> None:
    answer = await running.http.get("/v1/files/file-123")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "malformed_id")


async def test_a_file_whose_answer_is_lost_is_there(
    raw_settings: dict[str, Any], stages: Stages, lossy_url: str, network: Network
) -> None:
    raw_settings["jobs"] |= {"database_url": lossy_url}
    async with front(Settings.model_validate(raw_settings), stages) as running:
        network.loses = b"INSERT INTO files"
        form = {"files": {"file": ("lines.jsonl", b"{}")}, "data": {"purpose": "batch"}}
        lost = await running.http.post("/v1/files", **form)
        assert (lost.status_code, network.lost.is_set()) == (503, True), lost.text
        [listed] = (await running.http.get("/v1/files")).json()["data"]
        content = await running.http.get(f"/v1/files/{listed['id']}/content")
        assert (content.status_code, content.content) == (200, b"{}")
