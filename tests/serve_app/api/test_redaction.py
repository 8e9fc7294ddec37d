"""A prompt and a key as sentinels: in no line of the log, no refusal, no metric; the audit log says the rest."""

import base64
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends
from ray.util import metrics as ray_metrics

from serve_app.auth.key_file import Scope, new_key
from serve_app.auth.route_scopes import READ
from serve_app.config.settings import Settings
from serve_app.observability import logs
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front
from tests.serve_app.keyed import GENERATE_READ, bearer, with_keys

PROMPT = "SENTINEL-PROMPT a large red circle"
UNKNOWN_KEY = new_key("nobody", GENERATE_READ)[0]

# route -> a body with the prompt in it, and one that is refused
BODIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "/generate": ({"prompt": PROMPT, "seed": 2}, {"prompt": PROMPT * 100}),
    "/v1/images/generations": ({"prompt": PROMPT, "seed": 2}, {"prompt": PROMPT * 1_000}),
    "/sdapi/v1/txt2img": (
        {"prompt": PROMPT, "seed": 2, "width": 256, "height": 256},
        {"prompt": PROMPT, "negative_prompt": PROMPT * 100},
    ),
    "/models/demo-sd15": (
        {"inputs": PROMPT, "parameters": {"seed": 2}},
        {"inputs": PROMPT, "parameters": {"steps": 1}},
    ),
}


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    before = {name: (logging.getLogger(name).handlers[:], logging.getLogger(name).level) for name in logs.OUR_LOGGERS}
    stream = io.StringIO()
    logs.configure("INFO", stream)
    yield stream
    for name, (handlers, level) in before.items():
        logger = logging.getLogger(name)
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = True


@pytest.fixture
def keys(raw_settings: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    return with_keys(raw_settings, tmp_path / "keys", alice=GENERATE_READ, reader=frozenset({Scope.READ}))


@pytest.fixture
async def running(
    raw_settings: dict[str, Any], keys: dict[str, str], stages: Stages, written: io.StringIO
) -> AsyncIterator[Front]:
    async with front(Settings.model_validate(raw_settings), stages) as one:
        yield one


def audited(written: io.StringIO) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    return [line for line in lines if line["logger"] == "darkroom.audit"]


async def test_neither_prompts_nor_keys_leave_by_a_side_door(
    running: Front, keys: dict[str, str], written: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[str] = []  # what goes to Prometheus: every value with its labels
    record = ray_metrics.Metric._record
    monkeypatch.setattr(
        ray_metrics.Metric,
        "_record",
        lambda self, value, tags=None: (recorded.append(f"{tags} {self._default_tags}"), record(self, value, tags))[1],
    )
    refusals: list[str] = []
    basic = base64.b64encode(f"me:{keys['alice']}".encode()).decode()
    for path, (good, bad) in BODIES.items():
        waiting = {"prefer": "wait=30"}
        for headers in (bearer(keys["alice"]), {"x-api-key": keys["alice"]}, {"authorization": f"Basic {basic}"}):
            response = await running.http.post(path, json=good, headers={**headers, **waiting})
            assert response.status_code == 200, response.text
        # a stage that dies of a bug: its traceback goes to the log
        broken = {name: value.replace("circle", "bug") if value == PROMPT else value for name, value in good.items()}
        refusals.append((await running.http.post(path, json=broken, headers=bearer(keys["alice"]))).text)
        for body, headers in (
            (bad, bearer(keys["alice"])),
            (good, bearer(keys["reader"])),
            (good, bearer(UNKNOWN_KEY)),
            (good, {"x-api-key": UNKNOWN_KEY}),
        ):
            response = await running.http.post(path, json=body, headers={**headers, **waiting})
            assert response.status_code >= 400, response.text
            refusals.append(response.text)
        response = await running.http.get(f"/{PROMPT}?key={keys['alice']}", headers={"authorization": keys["alice"]})
        assert response.status_code == 404
    everything = written.getvalue()
    assert "a request broke" not in everything
    assert "ZeroDivisionError" in everything  # the bug was logged
    assert any("darkroom" not in line and "unauthenticated" in line for line in recorded)
    secrets = [*keys.values(), UNKNOWN_KEY, basic]
    for secret in ("SENTINEL-PROMPT", *secrets, *(key.split("_", 2)[2] for key in keys.values())):
        assert secret not in everything
        assert not [line for line in recorded if secret in line]
    for text in refusals:
        assert not [secret for secret in ("SENTINEL-PROMPT", *secrets) if secret in text], text


async def test_the_audit_log_says_who_asked_for_what_and_what_became_of_it(
    running: Front, keys: dict[str, str], written: io.StringIO
) -> None:
    headers = {**bearer(keys["alice"]), "prefer": "wait=30", "x-request-id": "request-1"}
    job = (await running.http.post("/generate", json=BODIES["/generate"][0], headers=headers)).json()
    assert (await running.http.get(job["image_url"])).status_code == 200
    await running.http.post("/generate", headers=bearer(keys["reader"]))
    await running.http.get("/jobs")
    await running.http.get("/health")
    made, seen, forbidden, unknown = audited(written)
    key_id = keys["alice"].split("_")[1]
    assert {name: made[name] for name in ("event", "level", "tenant", "key", "method", "route", "status", "jobs")} == {
        "event": "served",
        "level": "info",
        "tenant": "alice",
        "key": key_id,
        "method": "POST",
        "route": "/generate",
        "status": 200,
        "jobs": [job["job_id"]],
    }
    assert (made["request_id"], made["address"]) == ("request-1", "127.0.0.1")
    assert (seen["route"], seen["key"], seen["jobs"]) == ("/images/{name}", key_id, [job["job_id"]])
    assert (forbidden["event"], forbidden["tenant"], forbidden["status"]) == ("refused", "reader", 403)
    assert (unknown["level"], unknown["key"], unknown["code"]) == ("warning", None, "unauthenticated")


async def test_a_job_that_was_accepted_and_failed_is_no_refusal(
    running: Front, keys: dict[str, str], written: io.StringIO
) -> None:
    await running.http.post("/v1/images/generations", json={"prompt": "a bug"}, headers=bearer(keys["alice"]))
    job = await running.newest()
    [line] = audited(written)
    assert (line["event"], line["level"], line["status"], line["jobs"]) == ("failed", "warning", 500, [job.id])
    assert line["code"] == job.error_code


async def test_a_bug_of_a_route_is_audited_and_counted_once(
    running: Front, keys: dict[str, str], written: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    @running.app.get("/bug", dependencies=[Depends(READ)])
    async def bug() -> None:
        raise ZeroDivisionError

    refused: list[str] = []
    monkeypatch.setattr(running.service.metrics, "refused", refused.append)
    response = await running.http.get("/bug", headers=bearer(keys["alice"]))
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    [line] = audited(written)
    assert (line["event"], line["level"], line["status"], line["code"]) == ("failed", "warning", 500, "internal_error")
    assert refused == ["internal_error"]
    assert (await running.http.get("/health", headers={"x-large": "x" * (65 << 10)})).status_code == 431
    assert refused == ["internal_error", "headers_too_large"]


async def test_without_keys_there_is_nobody_to_write_about(
    settings: Settings, stages: Stages, written: io.StringIO
) -> None:
    async with front(settings, stages) as one:
        await one.generate(seed=2)
    assert audited(written) == []
    assert "job accepted" in written.getvalue()
