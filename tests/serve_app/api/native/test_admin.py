"""Models are changed while the service runs: every API follows, on every router, and nobody else may do it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.engine.types import DenoiseRequest
from serve_app.auth.key_file import Scope
from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front, until
from tests.serve_app.keyed import GENERATE_READ, bearer, with_keys

HASH = "0123456789abcdef" * 4

# what each call of `asked` answers for a model that isn't there
UNKNOWN = [422, 404, 404, 422, 422, 404]


@pytest.fixture
def keys(raw_settings: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    return with_keys(
        raw_settings, tmp_path / "keys", alice=GENERATE_READ, bob=GENERATE_READ, ops=frozenset({Scope.ADMIN})
    )


@pytest.fixture
async def routers(raw_settings: dict[str, Any], keys: dict[str, str], stages: Stages) -> AsyncIterator[list[Front]]:
    """Two on one database."""
    settings = Settings.model_validate({**raw_settings, "registry": {"poll_s": 0.05}})
    async with AsyncExitStack() as stack:
        fronts = [await stack.enter_async_context(front(settings, stages, owner=f"router-{n}")) for n in (1, 2)]
        for one in fronts:
            await one.service.live.start()
            stack.push_async_callback(one.service.live.stop)
        yield fronts


async def change(one: Front, key: str, model: str, status: int = 200, **patch: Any) -> Any:
    answer = await one.http.patch(f"/admin/models/{model}", json=patch, headers=bearer(key))
    assert answer.status_code == status, answer.text
    return answer.json()


async def followed(routers: list[Front]) -> None:
    """Wait until both routers know the last change."""
    first, second = (one.service.live for one in routers)
    await until(lambda: first.version == second.version)


async def listed(one: Front, key: str) -> list[set[str]]:
    """The names of models by each API."""
    paths = ("/models", "/v1/models", "/sdapi/v1/sd-models")
    native, openai, a1111 = [(await one.http.get(path, headers=bearer(key))).json() for path in paths]
    return [
        {model["name"] for model in native["models"]},
        {model["id"] for model in openai["data"]},
        {model["title"] for model in a1111},
    ]


async def asked(one: Front, key: str, model: str) -> list[int]:
    """The statuses of a request for a model by each API, and of a job."""
    drawing = {"prompt": "a red circle", "seed": 2}
    calls: list[tuple[str, str, Any]] = [
        ("POST", "/generate", {**drawing, "model": model}),
        ("POST", "/v1/images/generations", {**drawing, "size": "256x256", "model": model}),
        ("GET", f"/v1/models/{model}", None),
        ("POST", "/sdapi/v1/txt2img", {**drawing, "override_settings": {"sd_model_checkpoint": model}}),
        ("POST", "/sdapi/v1/options", {"sd_model_checkpoint": model}),
        ("POST", f"/models/{model}", {"inputs": "a red circle", "parameters": {"seed": 2}}),
    ]
    headers = {**bearer(key), "prefer": "wait=30"}
    return [(await one.http.request(how, path, json=body, headers=headers)).status_code for how, path, body in calls]


async def last_lane(stages: Stages, stage: str) -> DenoiseRequest:
    lanes: list[DenoiseRequest] = await stages.denoisers[stage].lanes_asked.remote()
    return lanes[-1]


async def test_an_alias_is_a_model_s_name_in_every_api(
    routers: list[Front], keys: dict[str, str], stages: Stages
) -> None:
    one, other = routers
    assert await asked(other, keys["bob"], "shapes") == UNKNOWN
    answer = await one.http.put("/admin/aliases/shapes", json={"model": "demo-sdxl"}, headers=bearer(keys["ops"]))
    assert answer.json()["aliases"] == [{"name": "shapes", "model": "demo-sdxl", "sha256": None, "changed": True}]
    await followed(routers)
    for router in routers:
        assert all(names == {"demo-sd15", "demo-sdxl", "shapes"} for names in await listed(router, keys["bob"]))
    assert await asked(other, keys["bob"], "shapes") == [200] * 6
    options = (await other.http.get("/sdapi/v1/options", headers=bearer(keys["bob"]))).json()
    assert options["sd_model_checkpoint"] == "shapes"
    native = (await other.http.get("/models", headers=bearer(keys["bob"]))).json()["models"]
    assert {model["name"]: model["alias_of"] for model in native}["shapes"] == "demo-sdxl"
    job = await other.newest()
    assert job.request["model"] == "demo-sdxl"  # a job is of the model that it meant, whatever comes
    assert (await last_lane(stages, "sdxl_base")).checkpoint_hash is None
    removed = await other.http.delete("/admin/aliases/shapes", headers=bearer(keys["ops"]))
    assert removed.json()["aliases"] == []
    await followed(routers)
    assert await asked(one, keys["bob"], "shapes") == UNKNOWN


async def test_an_alias_with_a_hash_pins_the_weights(
    routers: list[Front], keys: dict[str, str], stages: Stages
) -> None:
    one, _ = routers
    body = {"model": "demo-sdxl", "sha256": HASH}
    await one.http.put("/admin/aliases/shapes", json=body, headers=bearer(keys["ops"]))
    headers = {**bearer(keys["bob"]), "prefer": "wait=30"}
    answer = await one.http.post("/generate", json={"prompt": "x", "model": "shapes"}, headers=headers)
    assert answer.status_code == 200, answer.text
    assert (await last_lane(stages, "sdxl_base")).checkpoint_hash == HASH
    assert (await last_lane(stages, "sdxl_refiner")).checkpoint_hash is None
    drawing = {"prompt": "x", "seed": 2, "hires": {"scale": 1.5, "model": "shapes", "upscaler": "lanczos"}}
    answer = await one.http.post("/generate", json=drawing, headers=headers)
    assert answer.status_code == 200, answer.text
    first, second = await last_lane(stages, "sd15"), await last_lane(stages, "sdxl_base")
    assert (first.checkpoint_hash, second.checkpoint, second.checkpoint_hash) == (None, "demo-sdxl", HASH)
    for wrong in ("0" * 63, "G" * 64):
        refused = await one.http.put(
            "/admin/aliases/shapes", json={**body, "sha256": wrong}, headers=bearer(keys["ops"])
        )
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, "sha256")


async def test_a_drained_model_ends_its_jobs_and_takes_no_more(routers: list[Front], keys: dict[str, str]) -> None:
    one, other = routers
    drawing = {"prompt": "slow", "model": "demo-sdxl", "steps": 10, "seed": 2}
    job = (await one.http.post("/generate", json=drawing, headers=bearer(keys["bob"]))).json()
    answer = await change(other, keys["ops"], "demo-sdxl", serving=False)
    model = next(model for model in answer["models"] if model["name"] == "demo-sdxl")
    assert (model["serving"], model["unfinished"]) == (False, 1)
    await followed(routers)
    for router in routers:
        assert all(names == {"demo-sd15"} for names in await listed(router, keys["bob"]))
        assert await asked(router, keys["bob"], "demo-sdxl") == UNKNOWN
    ended = await one.service.wait(await one.service.store.get(job["job_id"]), 30)
    assert ended.state.value == "complete"
    models = (await one.http.get("/admin/models", headers=bearer(keys["ops"]))).json()["models"]
    assert {model["name"]: model["unfinished"] for model in models}["demo-sdxl"] == 0
    await change(one, keys["ops"], "demo-sdxl", serving=None)
    await followed(routers)
    assert await asked(other, keys["bob"], "demo-sdxl") == [200] * 6


async def test_a_restricted_model_is_there_for_its_tenants_alone(routers: list[Front], keys: dict[str, str]) -> None:
    one, other = routers
    await change(one, keys["ops"], "demo-sdxl", tenants=["alice"])
    await followed(routers)
    for owner, seen in (("alice", True), ("ops", True), ("bob", False)):
        assert all(("demo-sdxl" in names) is seen for names in await listed(other, keys[owner]))
    assert await asked(other, keys["alice"], "demo-sdxl") == [200] * 6
    secret, absent = await asked(other, keys["bob"], "demo-sdxl"), await asked(other, keys["bob"], "demo-sdx1")
    assert secret == absent == UNKNOWN


async def test_defaults_and_limits_change(routers: list[Front], keys: dict[str, str], stages: Stages) -> None:
    one, other = routers
    limits = {"steps": {"min": 2, "max": 8}}
    await change(one, keys["ops"], "demo-sd15", defaults={"steps": 5, "guidance_scale": 3}, limits=limits)
    await followed(routers)
    headers = {**bearer(keys["bob"]), "prefer": "wait=30"}
    assert (await other.http.post("/generate", json={"prompt": "x"}, headers=headers)).status_code == 200
    lane = await last_lane(stages, "sd15")
    assert (lane.steps, lane.guidance_scale) == (5, 3.0)
    refused = await other.http.post("/generate", json={"prompt": "x", "steps": 9}, headers=headers)
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "steps")
    shown = (await other.http.get("/models", headers=headers)).json()["models"][0]
    assert (shown["defaults"]["steps"], shown["limits"]["steps"]) == (5, {"min": 2, "max": 8})
    answer = await change(other, keys["ops"], "demo-sd15", 422, limits={"width": {"min": 128, "max": 2048}})
    assert "the memory is planned" in answer["error"]["message"]
    answer = await change(other, keys["ops"], "demo-sd15", 422, serving=False)
    assert "the default must serve" in answer["error"]["message"]
    answer = await change(other, keys["ops"], "none", 404, serving=False)
    assert answer["error"]["code"] == "unknown_entry"
    answer = await change(other, keys["ops"], "demo-sd15", 422, source="/etc/passwd")
    assert answer["error"]["field"] == "source"


async def test_every_change_is_on_record(routers: list[Front], keys: dict[str, str]) -> None:
    one, other = routers
    ops = bearer(keys["ops"])
    await change(one, keys["ops"], "demo-sdxl", defaults={"steps": 12})
    await followed(routers)
    await change(other, keys["ops"], "demo-sdxl", defaults=None)
    await other.http.put("/admin/aliases/shapes", json={"model": "demo-sd15"}, headers=ops)
    await change(other, keys["ops"], "demo-sd15", 422, serving=False)
    answer = (await one.http.get("/admin/changes", params={"limit": 2}, headers=ops)).json()
    lines = [(line["version"], line["kind"], line["name"], line["before"], line["after"]) for line in answer["changes"]]
    assert lines == [
        (3, "alias", "shapes", None, {"model": "demo-sd15"}),
        (2, "model", "demo-sdxl", {"defaults": {"steps": 12}}, None),
    ]
    assert answer["changes"][0]["tenant"] == "ops"
    assert answer["changes"][0]["key_id"] == keys["ops"].split("_")[1]
    rest = (await one.http.get("/admin/changes", params={"before": answer["next_cursor"]}, headers=ops)).json()
    assert ([line["version"] for line in rest["changes"]], rest["next_cursor"]) == ([1], None)


async def test_only_an_admin_may(routers: list[Front], keys: dict[str, str]) -> None:
    calls = [
        ("GET", "/admin/models"),
        ("PATCH", "/admin/models/demo-sd15"),
        ("PUT", "/admin/aliases/shapes"),
        ("DELETE", "/admin/aliases/shapes"),
        ("GET", "/admin/changes"),
    ]
    for method, path in calls:
        for headers, status in ((bearer(keys["alice"]), 403), ({}, 401)):
            answer = await routers[0].http.request(method, path, headers=headers)
            assert answer.status_code == status, path
    assert routers[0].service.live.version == 0


async def test_without_keys_it_is_for_this_machine_alone(raw_settings: dict[str, Any], stages: Stages) -> None:
    raw_settings["access"] = {"open_to_all": True}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        transport = httpx.ASGITransport(app=one.app)
        for address, status in (("10.0.0.1", 403), ("127.0.0.1", 200)):
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{address}:8000") as http:
                assert (await http.get("/models")).status_code == 200
                assert (await http.get("/admin/models")).status_code == status
