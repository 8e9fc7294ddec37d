"""Bad input of every kind: a clear 4xx in one form, never a 5xx, never a trace."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.exceptions import TaskCancelledError
from starlette.types import Message, Receive, Scope, Send

from serve_app.api.bodies import parse_json
from serve_app.api.middleware import RequestMiddleware
from serve_app.auth.route_scopes import routes_of
from serve_app.config.settings import LimitsSettings, Settings
from serve_app.errors import UnreadableRequest
from serve_app.observability.metrics import FrontMetrics
from serve_app.stages.client import Stages
from tests.serve_app.front import JSON, Front, front, until


def refused(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error, in the one form that errors have."""
    assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) <= {"code", "message", "field"}
    assert all(isinstance(value, str) and value for value in error.values())
    assert "Traceback" not in response.text
    assert response.headers["x-request-id"]
    return error


BODIES: list[tuple[bytes, str]] = [
    (b"", "empty"),
    (b"  \n", "empty"),
    (b"{", "JSON"),
    (b"{'prompt': 'x'}", "JSON"),
    (b'{"prompt": "x"} trailing', "JSON"),
    (b'{"prompt": "unterminated', "JSON"),
    (b'{"prompt": "x", "guidance_scale": NaN}', "column 35"),
    (b'{"prompt": "x", "guidance_scale": Infinity}', "column 35"),
    (b'{"prompt": "x", "guidance_scale": -Infinity}', "number"),
    (b'{"prompt": "x", "guidance_scale": 1e999}', "range"),
    (b'{"prompt": "x", "refiner": {"switch_at": [0, -1e999]}}', "range"),
    (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "range"),
    (b'{"prompt": "half a character \\ud800"}', "JSON"),
    (b'{"prompt": "\xff"}', "unicode"),
    (b"[" * 100_000, "values"),
    (b"[" * 1_000, "recursion"),
    (b'{"a":' * 1000 + b"1" + b"}" * 1000, "recursion"),
    (b"[" + b"1," * 20_000 + b"1]", "values"),
    (b'"' + b'\\"' * 200_000, "JSON"),
    (b"]" * 500_000, "JSON"),
    (b'""' * 250_000, "JSON"),
]


@pytest.mark.parametrize(("body", "said"), BODIES)
async def test_what_is_no_json_is_400(running: Front, body: bytes, said: str) -> None:
    error = refused(await running.http.post("/generate", content=body, headers=JSON), 400, "unreadable_request")
    assert said in error["message"]


@pytest.mark.parametrize("body", ["[]", "3", '"text"', "null"])
async def test_json_that_is_no_object_is_422(running: Front, body: str) -> None:
    refused(await running.http.post("/generate", content=body, headers=JSON), 422, "invalid_request")


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"prompt": 3}, "invalid_request", "prompt"),
        ({"unknown": 3}, "invalid_request", "unknown"),
        ({"steps": 51}, "invalid_request", "steps"),
        ({"guidance_scale": 0}, "invalid_request", "guidance_scale"),
        ({"width": 100}, "invalid_request", "width"),
        ({"height": 250}, "invalid_request", "height"),
        ({"n": 99}, "invalid_request", "n"),
        ({"model": "nope"}, "unknown_model", "model"),
        ({"scheduler": "nope"}, "unknown_sampler", "scheduler"),
        ({"prompt": "x" * 3000}, "invalid_request", "prompt"),
        ({"prompt": ""}, "invalid_request", "prompt"),
        ({"prompt": " "}, "invalid_request", "prompt"),
        ({"prompt": None}, "invalid_request", "prompt"),
        ({"prompt": "nul \x00"}, "invalid_request", "prompt"),
        ({"negative_prompt": ["x"]}, "invalid_request", "negative_prompt"),
        ({"negative_prompt": "x" * 3000}, "invalid_request", "negative_prompt"),
        ({"steps": 9}, "invalid_request", "steps"),
        ({"steps": "20"}, "invalid_request", "steps"),
        ({"steps": 20.5}, "invalid_request", "steps"),
        ({"steps": True}, "invalid_request", "steps"),
        ({"guidance_scale": 21}, "invalid_request", "guidance_scale"),
        ({"guidance_scale": "7"}, "invalid_request", "guidance_scale"),
        ({"width": 1024}, "invalid_request", "width"),
        ({"n": 0}, "invalid_request", "n"),
        ({"n": 1.5}, "invalid_request", "n"),
        ({"seed": -1}, "invalid_request", "seed"),
        ({"seed": 2**63 - 1, "n": 2}, "invalid_request", "seed"),
        ({"scheduler": 3}, "invalid_request", "scheduler"),
        ({"model": "../../etc"}, "unknown_model", "model"),
        ({"refiner": {"switch_at": 0.5}}, "invalid_request", "refiner"),  # the default model has none
        ({"refiner": {"unknown": 1}}, "invalid_request", "refiner.unknown"),
        ({"output_format": "svg"}, "invalid_request", "output_format"),
        ({"reproducible": "yes"}, "invalid_request", "reproducible"),
        ({"priority": "urgent"}, "invalid_request", "priority"),
        ({"timeout_s": 0}, "invalid_request", "timeout_s"),
        ({"timeout_s": 1e12}, "invalid_request", "timeout_s"),
        ({"safety": "off"}, "invalid_request", "safety"),
        ({"preview": 1}, "invalid_request", "preview"),
        *(
            ({field: value}, "invalid_request", field)
            for field in ("n", "seed", "steps", "width", "height", "timeout_s", "guidance_scale")
            for value in (10**30, -(10**30), 2**63)
        ),
    ],
)
async def test_bad_fields_are_422_and_named(running: Front, fields: dict[str, Any], code: str, field: str) -> None:
    error = refused(await running.http.post("/generate", json={"prompt": "x", **fields}), 422, code)
    assert error["field"] == field


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/mixed; boundary=x"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": "application/json", "content-encoding": "gzip"},
        {},
    ],
)
async def test_another_content_type_is_415(running: Front, headers: dict[str, str]) -> None:
    response = await running.http.post("/generate", content=b'{"prompt": "x"}', headers=headers)
    refused(response, 415, "unsupported_media_type")


FORMS = {
    "application/x-www-form-urlencoded": b"prompt=x&" + b"a=&" * 300,
    "multipart/form-data; boundary=b": b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--b--',
    "multipart/form-data": b"--",
}
BODILESS = {
    f"/sdapi/v1/{name}"
    for name in (
        "interrupt", "skip", "interrogate", "unload-checkpoint", "reload-checkpoint", "refresh-checkpoints",
        "refresh-loras", "refresh-vae", "refresh-embeddings",
    )
} | {"/controlnet/detect", "/v1/batches/{batch_id}/cancel"}  # fmt: skip
# (bounded forms are in test_bodies.py)
WITH_FORMS = (
    "/generate",
    "/verify",
    "/images/edits",
    "/images/variations",
    "/images/inpainting",
    "/images/upscale",
    "/v1/files",
)


async def test_no_other_route_reads_a_form(running: Front) -> None:
    for method, path in routes_of(running.app):
        if method != "POST" or path in BODILESS or path.endswith(WITH_FORMS):
            continue
        for kind, form in FORMS.items():
            url = path.replace("{model_id:path}", "demo-sd15")
            response = await running.http.post(url, content=form, headers={"content-type": kind})
            assert response.status_code == 415, (path, kind)
            too_long = {"content-type": kind, "content-length": "9999999"}
            assert (await running.http.post(url, content=form, headers=too_long)).status_code in (413, 415)
    assert (await running.http.get("/jobs")).json()["jobs"] == []


BOMBS = {
    "brackets": "(" * 2_000,
    "weights": "((red:1.5):" * 180,
    "numbers": "(a:" + "9" * 1_900 + ")",
    "tags": "<lora:x:1>" * 200,
    "marks": "e" + "\u0301" * 1_999,
    "directions": "\u202e\u200b" * 1_000,
    "turns": "[" + "a|" * 900 + "]",
    "edits": "[a:b:3]" * 280,
    "faces": "\U0001f469\u200d\U0001f469\u200d\U0001f467" * 400,
    "spaces": " \t\n" * 600 + "x",
}
REFUSED = {
    "brackets": "more than 32 deep",
    "weights": "more than 32 deep",
    "numbers": "the weight inf, outside 0..10",
    "tags": "LoRA",
    "turns": "more than 16 different texts",
}


@pytest.mark.parametrize("name", BOMBS)
async def test_a_prompt_is_drawn_or_refused_whatever_it_holds(running: Front, name: str) -> None:
    bomb = BOMBS[name][:2_000]
    for field in ("negative_prompt", "prompt"):
        asked: dict[str, Any] = {"prompt": "x", "seed": 2, "width": 128, "height": 128, field: bomb}
        response = await running.generate(**asked)
        if name in REFUSED:
            error = response.json()["error"]
            assert (response.status_code, error["code"], error["field"]) == (422, "invalid_request", field)
            assert REFUSED[name] in error["message"]
        else:
            assert response.json()["status"] == "complete", response.text


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/generate", {"prompt": "x" * 2_001}, 422),
        ("/generate", {"prompt": "x", "negative_prompt": "x" * 2_001}, 422),
        ("/v1/images/generations", {"prompt": "x" * 2_001}, 400),
        ("/v1/images/generations", {"prompt": "x", "negative_prompt": "x" * 2_001}, 400),
        ("/sdapi/v1/txt2img", {"prompt": "x" * 2_001}, 422),
        ("/sdapi/v1/txt2img", {"infotext": "x" * 2_001}, 422),
        ("/predict", {"inputs": "x" * 2_001}, 422),
        ("/models/demo-sd15", {"inputs": "x", "parameters": {"negative_prompt": "x" * 2_001}}, 422),
    ],
)
async def test_no_dialect_takes_a_longer_prompt(running: Front, path: str, body: dict[str, Any], status: int) -> None:
    response = await running.http.post(path, json=body)
    assert response.status_code == status
    assert "x" * 65 not in response.text


async def test_json_types_with_parameters_are_taken(running: Front) -> None:
    for kind in ("application/json; charset=utf-8", "application/merge-patch+json", "APPLICATION/JSON"):
        response = await running.http.post("/generate", content=b"{}", headers={"content-type": kind})
        assert refused(response, 422, "invalid_request")["field"] == "prompt"


async def test_an_oversized_body_is_refused_while_it_is_read(running: Front) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 100 << 20:
            sent += 1 << 16
            yield b" " * (1 << 16)

    response = await running.http.post("/generate", content=endless(), headers=JSON)
    refused(response, 413, "body_too_large")
    assert sent <= running.service.settings.limits.max_image_body_bytes + (1 << 17)


@pytest.mark.parametrize("length", ["99999999", "9" * 50])
async def test_a_declared_length_is_enough_to_refuse(running: Front, length: str) -> None:
    headers = {**JSON, "content-length": length}
    response = await running.http.post("/generate", content=b"{}", headers=headers)
    refused(response, 413, "body_too_large")


@pytest.mark.parametrize(
    "headers",
    [{f"x-{number}": "v" for number in range(1_000)}, {"x-long": "v" * (1 << 20)}, {"v" * (1 << 16): ""}],
    ids=["many", "long", "long-name"],
)
async def test_headers_beyond_all_use_are_431_wherever_they_are_sent(running: Front, headers: dict[str, str]) -> None:
    for path in ("/generate", "/health", "/nowhere"):
        refused(await running.http.get(path, headers=headers), 431, "headers_too_large")
    assert (await running.http.get("/health", headers={"x-long": "v" * 32_768})).status_code == 200


async def test_a_slow_body_is_408(raw_settings: dict[str, Any], stages: Stages) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    settings = Settings.model_validate({**raw_settings, "limits": {"body_timeout_s": 0.1}})
    async with front(settings, stages) as one:
        refused(await one.http.post("/generate", content=slow(), headers=JSON), 408, "body_too_slow")


@pytest.mark.parametrize("path", ["/result/{}", "/jobs/{}/events"])
async def test_an_unknown_job_is_404_and_a_malformed_id_400(running: Front, path: str) -> None:
    refused(await running.http.get(path.format("0" * 32)), 404, "unknown_job")
    for malformed in ("x", "0" * 31, "0" * 33, "0" * 31 + "G", "%00" * 32, "..%2f..%2fetc%2fpasswd"):
        response = await running.http.get(path.format(malformed))
        assert response.status_code in (400, 404)
        assert response.json()["error"]["code"] in ("malformed_id", "unknown_route")


async def test_cancelling_an_unknown_job(running: Front) -> None:
    refused(await running.http.delete("/jobs/" + "0" * 32), 404, "unknown_job")
    refused(await running.http.delete("/jobs/nope"), 400, "malformed_id")


@pytest.mark.parametrize(
    "name",
    ["nope", "nope.png", "0" * 32 + "-1-0.png", "0" * 32 + "-1-0.svg", "..%2f..%2fjobs.db", "%2e%2e/jobs.db"],
)
async def test_an_unknown_image_is_404(running: Front, name: str) -> None:
    response = await running.http.get(f"/images/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] in ("unknown_image", "unknown_route")


async def test_a_full_queue_is_503_in_the_same_form(raw_settings: dict[str, Any], stages: Stages) -> None:
    raw_settings["jobs"]["max_queued"] = 1
    async with front(Settings.model_validate(raw_settings), stages) as one:
        taken = (await one.generate("endless", wait=None)).json()
        response = await one.generate("endless", wait=None)
        refused(response, 503, "queue_full")
        assert int(response.headers["retry-after"]) >= 1
        await one.http.delete(taken["links"]["cancel"])
        assert (await one.generate(wait=None)).status_code == 202


async def test_one_event_stream_too_many_is_503(raw_settings: dict[str, Any], stages: Stages) -> None:
    raw_settings["limits"] = {"max_event_streams": 2}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        links = (await one.generate("endless", wait=None)).json()["links"]
        # all at once: none may slip in while another is being opened
        asked = [asyncio.create_task(one.http.get(links["events"])) for _ in range(5)]
        await until(lambda: sum(task.done() for task in asked) == 3)
        for task in asked:
            if task.done():
                refused(task.result(), 503, "too_many_streams")
                assert task.result().headers["retry-after"]
        await one.http.delete(links["cancel"])
        await asyncio.gather(*asked)
        assert (await one.http.get(links["events"])).status_code == 200  # their places are free again


async def test_unknown_routes_and_methods(running: Front) -> None:
    refused(await running.http.get("/nope"), 404, "unknown_route")
    refused(await running.http.get("/generate/"), 404, "unknown_route")
    refused(await running.http.post("/nope", content=b"x"), 404, "unknown_route")
    response = await running.http.get("/generate")
    refused(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    refused(await running.http.request("BREW", "/models"), 405, "method_not_allowed")
    refused(await running.http.put("/result/" + "0" * 32), 405, "method_not_allowed")
    refused(await running.http.post("/docs-files/swagger-ui.css"), 405, "method_not_allowed")


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "limit=1e3", "cursor=" + "x" * 100])
async def test_bad_query_parameters_are_422(running: Front, query: str) -> None:
    error = refused(await running.http.get(f"/jobs?{query}"), 422, "invalid_request")
    assert error["field"] == query.split("=")[0]


async def test_a_malformed_cursor_is_400(running: Front) -> None:
    refused(await running.http.get("/jobs?cursor=nope"), 400, "malformed_id")


@pytest.mark.parametrize("prefer", ["wait", "wait=", "wait=-1", "wait=x", "respond-async", "wait=1e5", ""])
async def test_a_preference_that_is_not_understood_is_ignored(running: Front, prefer: str) -> None:
    response = await running.http.post("/generate", json={"prompt": "x", "seed": 2}, headers={"prefer": prefer})
    assert response.status_code == 202
    assert "preference-applied" not in response.headers


async def test_head_is_get_without_a_body(running: Front) -> None:
    for path in ("/models", "/health", "/docs"):
        full, head = await running.http.get(path), await running.http.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == full.headers["content-length"]
    assert (await running.http.head("/nope")).status_code == 404


async def test_the_server_drops_what_head_would_bring(http: httpx.AsyncClient) -> None:
    for path in ("/models", "/docs-files/swagger-ui.css", "/nope"):
        head = await http.head(path)
        full = await http.get(path)  # on the same connection
        assert (head.status_code, head.content) == (full.status_code, b"")
        assert head.headers["content-length"] == str(len(full.content))


async def test_head_of_an_event_stream_ends(running: Front) -> None:
    body = (await running.generate("endless", wait=None)).json()
    head = await running.http.head(body["links"]["events"])
    assert (head.status_code, head.content) == (200, b"")
    await running.http.delete(body["links"]["cancel"])


async def test_request_ids_are_taken_or_made(running: Front) -> None:
    taken = await running.http.get("/health", headers={"x-request-id": "abc-1"})
    assert taken.headers["x-request-id"] == "abc-1"
    for odd in ("", "x" * 129, "a b", "<script>"):
        made = await running.http.get("/health", headers={"x-request-id": odd})
        assert len(made.headers["x-request-id"]) == 32


async def test_every_answer_carries_safe_headers(running: Front) -> None:
    for response in (await running.http.get("/models"), await running.http.get("/nope")):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in response.headers["content-security-policy"]


async def test_the_interface_is_described(running: Front) -> None:
    document = (await running.http.get("/openapi.json")).json()
    body = document["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/GenerationRequest"}
    assert {"GenerationRequest", "RefinerRequest", "JobView"} <= set(document["components"]["schemas"])
    assert {"/generate", "/result/{job_id}", "/jobs/{job_id}/events", "/jobs", "/models", "/images/{name}"} <= set(
        document["paths"]
    )


async def test_an_outage_of_the_database_is_503_and_no_false_202(running: Front) -> None:
    path = str(running.service.settings.jobs.database_url).removeprefix("sqlite+aiosqlite:///")
    await asyncio.to_thread(break_database, path)
    response = await running.generate(wait=None)
    refused(response, 503, "store_unavailable")
    assert response.headers["retry-after"]


def test_json_is_read_200_levels_deep_and_no_deeper() -> None:
    limits = LimitsSettings()
    for start, end in ((b"[", b"]"), (b'{"a":', b"}")):
        parse_json(start * 200 + b"1" + end * 200, limits)
        with pytest.raises(UnreadableRequest, match="recursion"):
            parse_json(start * 201 + b"1" + end * 201, limits)


def break_database(path: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE jobs")


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    limits = LimitsSettings()
    try:
        parse_json(body, limits)
    except UnreadableRequest as error:
        str(error).encode()


async def test_serve_s_cancelled_call_for_messages_is_a_client_that_left() -> None:
    """Seen of event streams that a browser left: Serve cancels its call before the proxy tells of it."""
    got: list[Message] = []

    async def stream(_scope: Scope, receive: Receive, _send: Send) -> None:
        got.append(await receive())

    async def cancelled() -> Message:
        raise TaskCancelledError

    async def nothing(_message: Message) -> None:
        pytest.fail("nobody is there to be answered")

    scope = {"type": "http", "method": "GET", "path": "/jobs/1/events", "headers": []}
    door = RequestMiddleware(stream, FrontMetrics(), LimitsSettings(), adds_request_id=False)
    await door(scope, cancelled, nothing)
    assert got == [{"type": "http.disconnect"}]
