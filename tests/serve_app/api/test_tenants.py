"""What belongs to one tenant doesn't exist for another: every route with an id, and every list."""

import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from serve_app.auth.key_file import Scope, new_key
from serve_app.auth.route_scopes import routes_of
from serve_app.config.settings import Settings
from serve_app.jobs.states import JobState
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front, until
from tests.serve_app.keyed import GENERATE_READ, bearer, with_keys


@pytest.fixture
def keys(raw_settings: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    return with_keys(
        raw_settings, tmp_path / "keys", alice=GENERATE_READ, bob=GENERATE_READ, ops=frozenset({Scope.ADMIN})
    )


@pytest.fixture
async def running(raw_settings: dict[str, Any], keys: dict[str, str], stages: Stages) -> AsyncIterator[Front]:
    async with front(Settings.model_validate(raw_settings), stages) as one:
        yield one


async def drawn(running: Front, key: str, prompt: str = "a red circle", wait: int = 30) -> dict[str, Any]:
    headers = {**bearer(key), "prefer": f"wait={wait}"}
    response = await running.http.post("/generate", json={"prompt": prompt, "seed": 2}, headers=headers)
    body: dict[str, Any] = response.json()
    return body


async def test_every_route_with_somebody_else_s_id_is_404(running: Front, keys: dict[str, str]) -> None:
    job = await drawn(running, keys["alice"])
    ids = {"{job_id}": job["job_id"], "{name}": job["image_url"].partition("?")[0].removeprefix("/images/")}
    walked = []
    routes = routes_of(running.app)
    for method, path in routes:
        for gap, own in ids.items():
            # (the playground's files are everybody's, what is changed of models an admin's)
            if gap not in path or path == "/ui/{name}" or path.startswith("/admin/"):
                continue
            walked.append(path)
            url = path.replace(gap, own)
            theirs = await running.http.request(method, url, headers=bearer(keys["bob"]))
            assert theirs.status_code == 404, (method, path)
            nowhere = url.replace(job["job_id"], "0" * 32)
            nothing = await running.http.request(method, nowhere, headers=bearer(keys["bob"]))
            assert theirs.json() == nothing.json()  # the two can't be told apart
            for owner in ("alice", "ops"):
                another = await drawn(running, keys["alice"])  # some routes delete theirs
                url = path.replace(gap, own).replace(job["job_id"], another["job_id"])
                mine = await running.http.request(method, url, headers=bearer(keys[owner]))
                assert mine.is_success, (method, path, owner)
    assert len(walked) == 6
    # (the tests of files and batches have theirs)
    assert {path for _, path in routes if "{" in path and not path.startswith("/admin/")} - set(walked) == {
        "/v1/models/{model_id}",
        "/v1/files/{file_id}",
        "/v1/files/{file_id}/content",
        "/batches/{batch_id}",
        "/batches/{batch_id}/sheet",
        "/batches/{batch_id}/images",
        "/v1/batches/{batch_id}",
        "/v1/batches/{batch_id}/cancel",
        "/openai/deployments/{model}/images/generations",
        "/openai/deployments/{model}/images/edits",
        "/models/{model_id:path}",
        "/ui/{name}",
    }


async def test_somebody_else_s_job_can_t_be_cancelled(running: Front, keys: dict[str, str]) -> None:
    job = await drawn(running, keys["alice"], "endless", wait=0)
    await until(lambda: running.service.hub.latest(job["job_id"]) is not None)
    path = f"/jobs/{job['job_id']}"
    assert (await running.http.delete(path, headers=bearer(keys["bob"]))).status_code == 404
    assert not (await running.service.store.get(job["job_id"])).cancel_requested
    assert (await running.http.delete(path, headers=bearer(keys["alice"]))).json()["status"] == "cancelled"


async def test_lists_hold_one_s_own(running: Front, keys: dict[str, str]) -> None:
    of = {owner: (await drawn(running, keys[owner]))["job_id"] for owner in ("alice", "bob", "ops")}
    for owner, expected in {"alice": {of["alice"]}, "bob": {of["bob"]}, "ops": set(of.values())}.items():
        page = (await running.http.get("/jobs", headers=bearer(keys[owner]))).json()
        assert {job["job_id"] for job in page["jobs"]} == expected
    after = f"/jobs?cursor={of['bob']}"
    page = (await running.http.get(after, headers=bearer(keys["bob"]))).json()
    assert page["jobs"] == []  # alice's is older than the cursor, and not in it
    for owner, count in {"alice": 1, "bob": 0, "ops": 1}.items():
        by_end = f"/jobs?id={of['alice'][-8:]}"
        assert len((await running.http.get(by_end, headers=bearer(keys[owner]))).json()["jobs"]) == count


async def test_an_idempotency_key_is_one_s_own(running: Front, keys: dict[str, str]) -> None:
    made: dict[str, set[str]] = {}
    for owner in ("alice", "bob", "alice"):
        headers = {**bearer(keys[owner]), "idempotency-key": "the-first"}
        response = await running.http.post("/generate", json={"prompt": f"for {owner}", "seed": 2}, headers=headers)
        assert response.status_code == 202, response.text  # bob's other body is no mismatch
        made.setdefault(owner, set()).add(response.json()["job_id"])
    assert len(made["alice"]) == 1
    assert made["alice"] != made["bob"]


async def test_interrupt_and_options_are_one_s_own(running: Front, keys: dict[str, str]) -> None:
    await running.http.post(
        "/sdapi/v1/options", json={"sd_model_checkpoint": "demo-sdxl"}, headers=bearer(keys["alice"])
    )
    for owner, model in {"alice": "demo-sdxl", "bob": "demo-sd15"}.items():
        options = (await running.http.get("/sdapi/v1/options", headers=bearer(keys[owner]))).json()
        assert options["sd_model_checkpoint"] == model
    job = await drawn(running, keys["alice"], "endless", wait=0)
    await running.http.post("/sdapi/v1/interrupt", headers=bearer(keys["bob"]))
    assert not (await running.service.store.get(job["job_id"])).cancel_requested


async def test_jobs_from_before_the_keys_are_the_admin_s_alone(
    raw_settings: dict[str, Any], keys: dict[str, str], stages: Stages
) -> None:
    open_settings = Settings.model_validate({**raw_settings, "access": {}})
    async with front(open_settings, stages) as one:
        job = (await one.generate(seed=2)).json()
        assert "?" not in job["image_url"]
    async with front(Settings.model_validate(raw_settings), stages) as one:
        for owner, status in {"alice": 404, "ops": 200}.items():
            for path in (f"/result/{job['job_id']}", job["image_url"]):
                assert (await one.http.get(path, headers=bearer(keys[owner]))).status_code == status
        assert (await one.service.store.get(job["job_id"])).state is JobState.COMPLETE


async def test_and_theirs_are_nobody_s_after_the_keys(
    raw_settings: dict[str, Any], keys: dict[str, str], stages: Stages
) -> None:
    async with front(Settings.model_validate(raw_settings), stages) as one:
        job = await drawn(one, keys["alice"])
    async with front(Settings.model_validate({**raw_settings, "access": {}}), stages) as one:
        assert (await one.http.get(f"/result/{job['job_id']}")).status_code == 404
        assert (await one.http.get(job["image_url"])).status_code == 404
        assert (await one.http.get("/jobs")).json()["jobs"] == []


async def test_a_model_with_tenants_exists_for_them_and_for_admins(
    raw_settings: dict[str, Any], keys: dict[str, str], stages: Stages
) -> None:
    raw_settings["models"]["demo-sd15-outline"] = raw_settings["models"]["demo-sd15"] | {"tenants": ["alice"]}
    async with front(Settings.model_validate(raw_settings), stages) as running:

        async def lists(owner: str) -> list[set[str]]:
            answers = [await running.http.get(path, headers=bearer(keys[owner])) for path in _LISTS]
            native, openai, a1111 = (answer.json() for answer in answers)
            return [
                {model["name"] for model in native["models"]},
                {model["id"] for model in openai["data"]},
                {model["title"] for model in a1111},
            ]

        async def requests(owner: str) -> list[int]:
            drawing, size = {"prompt": "a red circle", "seed": 2}, {"width": 256, "height": 256}
            secret, absent = "demo-sd15-outline", "demo-sd15-0utline"
            asked = [
                ("POST", "/generate", {**drawing, "model": secret}),
                ("POST", "/v1/images/generations", {**drawing, "model": secret, "size": "256x256"}),
                ("POST", "/sdapi/v1/options", {"sd_model_checkpoint": secret}),
                (
                    "POST",
                    "/sdapi/v1/txt2img",
                    {**drawing, **size, "override_settings": {"sd_model_checkpoint": secret}},
                ),
                ("POST", f"/models/{secret}", {"inputs": "a red circle", "parameters": {"seed": 2}}),
                ("GET", f"/v1/models/{secret}", None),
            ]
            found = []
            for method, path, body in asked:
                text = json.dumps(body)
                answers = [
                    await running.http.request(
                        method,
                        path.replace(secret, name),
                        content=None if body is None else text.replace(secret, name),
                        headers={**bearer(keys[owner]), "content-type": "application/json"},
                    )
                    for name in ((secret, absent) if owner == "bob" else (secret,))
                ]
                # what isn't for somebody can't be told from what isn't there
                # (A1111's errors also come as a picture of their words)
                told = [re.sub(r'"images":\["[^"]*"\]', "", answer.text) for answer in answers]
                texts = {text.replace(absent, secret) for text in told}
                assert owner != "bob" or len(texts) == 1, (path, texts)
                found.append(answers[0].status_code)
            return found

        for owner in ("alice", "ops"):
            assert all("demo-sd15-outline" in models for models in await lists(owner))
            assert await requests(owner) == [202, 200, 200, 200, 200, 200]
        assert not any("demo-sd15-outline" in models for models in await lists("bob"))
        assert all(400 <= status < 500 for status in await requests("bob"))


_LISTS = ("/models", "/v1/models", "/sdapi/v1/sd-models")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda raw: raw["models"]["demo-sd15"].update(tenants=["alice"]),
            "default_model: 'demo-sd15' is limited to some tenants",
        ),
        (lambda raw: raw["models"]["demo-sdxl-refiner"].update(tenants=["alice"]), "a refiner has none of its own"),
        (lambda raw: (raw["models"]["demo-sdxl"].update(tenants=["alice"]), raw.pop("access")), "needs API keys"),
        (lambda raw: raw["models"]["demo-sdxl"].update(tenants=[]), "at least 1 item"),
    ],
)
def test_tenants_that_make_no_sense(
    raw_settings: dict[str, Any], keys: dict[str, str], change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    change(raw_settings)
    with pytest.raises(ValueError, match=reason):
        Settings.model_validate(raw_settings)


async def test_an_admin_s_choice_of_a_model_is_none_for_another_key_of_the_tenant(
    raw_settings: dict[str, Any], tmp_path: Path, stages: Stages
) -> None:
    raw_settings["models"]["demo-sd15-outline"] = raw_settings["models"]["demo-sd15"] | {"tenants": ["alice"]}
    admin, line = new_key("bob", frozenset({Scope.ADMIN}))
    keys = with_keys(raw_settings, tmp_path / "keys", bob=GENERATE_READ)
    with (tmp_path / "keys").open("a") as file:
        file.write(f"{line}\n")
    async with front(Settings.model_validate(raw_settings), stages) as running:
        chosen = {"sd_model_checkpoint": "demo-sd15-outline"}
        answer = await running.http.post("/sdapi/v1/options", json=chosen, headers=bearer(admin))
        assert answer.status_code == 200
        options = (await running.http.get("/sdapi/v1/options", headers=bearer(keys["bob"]))).json()
        assert options["sd_model_checkpoint"] == "demo-sd15"
        body = {"prompt": "a red circle", "seed": 2, "width": 256, "height": 256}
        drawn = await running.http.post("/sdapi/v1/txt2img", json=body, headers=bearer(keys["bob"]))
        assert drawn.status_code == 200, drawn.text
        assert (await running.newest()).request["model"] == "demo-sd15"
