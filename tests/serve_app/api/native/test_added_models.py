"""Models are added and removed while the service runs: not served before they drew, on every router, in every API."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from serve_app.auth.key_file import Scope
from serve_app.config.settings import Settings
from serve_app.jobs.states import JobState
from serve_app.registry import added_models
from serve_app.registry.entries import Author, EntryKind
from serve_app.stages.client import Stages
from tests.ldm_export import write_hollow
from tests.serve_app.api.native.test_admin import UNKNOWN, asked, followed, last_lane, listed
from tests.serve_app.front import Front, front, until
from tests.serve_app.keyed import GENERATE_READ, bearer, with_keys

SIZES = {
    "defaults": {"width": 256, "height": 256, "steps": 12},
    "limits": {"width": {"min": 128, "max": 512}, "height": {"min": 128, "max": 512}},
}
CONFIGURED = {"demo-sd15", "demo-sdxl"}


@pytest.fixture
def keys(raw_settings: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    return with_keys(
        raw_settings, tmp_path / "keys", alice=GENERATE_READ, bob=GENERATE_READ, ops=frozenset({Scope.ADMIN})
    )


@pytest.fixture(scope="module")
def hollow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hollow(tmp_path_factory.mktemp("hollow") / "sd15.safetensors", "sd15")


@pytest.fixture
def folder(tmp_path: Path, hollow: Path) -> Path:
    """The one that models may be added from."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("new", "unloadable", "endless"):
        (folder / f"{name}.safetensors").hardlink_to(hollow)
    return folder


@pytest.fixture
async def routers(
    raw_settings: dict[str, Any], keys: dict[str, str], folder: Path, stages: Stages
) -> AsyncIterator[list[Front]]:
    """Two on one database."""
    changes = {
        "registry": {"poll_s": 0.05, "folders": [str(folder)]},
        "safety": {"classifier": "package:demo_models/demo-nsfw"},
    }
    settings = Settings.model_validate(raw_settings | changes)
    async with AsyncExitStack() as stack:
        fronts = [await stack.enter_async_context(front(settings, stages, owner=f"router-{n}")) for n in (1, 2)]
        for one in fronts:
            await one.service.live.start()
            stack.push_async_callback(one.service.live.stop)
        yield fronts


async def add(one: Front, key: str, name: str, status: int = 202, **fields: Any) -> Any:
    body = {"name": name, "source": f"{name}.safetensors", **SIZES, **fields}
    answer = await one.http.post("/admin/models", json=body, headers=bearer(key))
    assert answer.status_code == status, answer.text
    return answer.json()


def state_of(one: Front, name: str) -> str | None:
    """Of an added model; None where there is none."""
    content = one.service.live.entries.checkpoints.get(name)
    return None if content is None else content["state"]


async def become(routers: list[Front], name: str, state: str | None) -> None:
    await until(lambda: all(state_of(one, name) == state for one in routers))


async def remove(one: Front, key: str, name: str, status: int = 202) -> Any:
    answer = await one.http.delete(f"/admin/models/{name}", headers=bearer(key))
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_a_model_is_served_once_it_has_drawn_and_until_it_is_removed(
    routers: list[Front], keys: dict[str, str], folder: Path, stages: Stages
) -> None:
    one, other = routers
    answer = await add(one, keys["ops"], "new", licence="mine")
    [added] = [model["added"] for model in answer["models"] if model["name"] == "new"]
    assert (added["state"] in ("adding", "ready"), added["source"]) == (True, str(folder / "new.safetensors"))
    events = await one.http.get(f"/jobs/{added['job_id']}/events", headers=bearer(keys["ops"]))
    assert ("event: progress" in events.text, "event: complete" in events.text) == (True, True)
    await become(routers, "new", "ready")
    first = await last_lane(stages, "sd15")
    assert (first.checkpoint, first.steps, first.width) == (f"new@{added['job_id'][-8:]}", 10, 256)
    assert first.added is not None
    assert (first.added.spec.family, first.added.spec.source) == ("sd15", str(folder / "new.safetensors"))
    for router in routers:
        assert all(names == CONFIGURED | {"new"} for names in await listed(router, keys["bob"]))
        assert await asked(router, keys["bob"], "new") == [200] * 6
    assert (await one.http.post("/sdapi/v1/refresh-checkpoints", headers=bearer(keys["bob"]))).status_code == 200
    await other.http.put("/admin/aliases/realistic", json={"model": "new"}, headers=bearer(keys["ops"]))
    await followed(routers)
    assert await asked(one, keys["bob"], "realistic") == [200] * 6
    job = await one.newest()
    assert job.request["model"] == "new"
    assert job.result is not None
    assert job.result["images"][0]["manifest"]["model"]["name"] == "new"
    refused = await remove(other, keys["ops"], "new", 422)
    assert "the alias 'realistic' means it" in refused["error"]["message"]
    await other.http.delete("/admin/aliases/realistic", headers=bearer(keys["ops"]))
    await other.http.patch("/admin/models/new", json={"defaults": {"steps": 20}}, headers=bearer(keys["ops"]))
    await followed(routers)
    await remove(one, keys["ops"], "new")
    assert await asked(one, keys["bob"], "new") == UNKNOWN
    await become(routers, "new", None)
    for router in routers:
        assert all(names == CONFIGURED for names in await listed(router, keys["bob"]))
        assert router.service.live.entries.models == {}
    for stage in (stages.text_encoder, stages.denoisers["sd15"]):
        assert (await stage.retained.remote())[-1] == ()
    changes = (await one.http.get("/admin/changes", headers=bearer(keys["ops"]))).json()["changes"]
    steps = [
        (None if change["after"] is None else change["after"]["state"], change["tenant"])
        for change in reversed(changes)
        if change["kind"] == "checkpoint"
    ]
    assert steps == [("adding", "ops"), ("ready", ""), ("removing", "ops"), (None, "")]


async def test_until_it_has_drawn_nobody_may_use_it_and_its_load_can_be_cancelled(
    routers: list[Front], keys: dict[str, str]
) -> None:
    one, other = routers
    await add(one, keys["ops"], "endless")
    await followed(routers)
    for router in routers:
        assert all(names == CONFIGURED for names in await listed(router, keys["ops"]))
        assert await asked(router, keys["ops"], "endless") == UNKNOWN
    job_id = one.service.live.entries.checkpoints["endless"]["job"]
    assert "a model 'endless' already (adding)" in (await add(other, keys["ops"], "endless", 422))["error"]["message"]
    patched = await one.http.patch("/admin/models/endless", json={"serving": True}, headers=bearer(keys["ops"]))
    assert {model["name"]: model["serving"] for model in patched.json()["models"]}["endless"] is False
    await followed(routers)
    assert await asked(other, keys["ops"], "endless") == UNKNOWN
    await one.http.delete(f"/jobs/{job_id}", headers=bearer(keys["ops"]))
    await become(routers, "endless", "failed")
    [problem] = [
        model["added"]["problem"]
        for model in (await other.http.get("/admin/models", headers=bearer(keys["ops"]))).json()["models"]
        if model["name"] == "endless"
    ]
    assert problem == "its first image was cancelled"
    await add(other, keys["ops"], "endless")  # again, over the one that failed
    await remove(one, keys["ops"], "endless")
    await become(routers, "endless", None)
    assert (await one.newest()).state is JobState.CANCELLED
    assert (await one.newest()).id != job_id


async def test_one_that_cannot_be_loaded_fails_with_the_reason(
    routers: list[Front], keys: dict[str, str], stages: Stages
) -> None:
    one, other = routers
    await add(one, keys["ops"], "unloadable")
    await become(routers, "unloadable", "failed")
    entry = other.service.live.entries.checkpoints["unloadable"]
    assert entry["problem"] == "/srv/models/secret/unet.safetensors is missing"
    assert await asked(other, keys["bob"], "unloadable") == UNKNOWN
    assert (await stages.denoisers["sd15"].retained.remote())[-1] == ()
    await remove(one, keys["ops"], "unloadable")
    await become(routers, "unloadable", None)


async def test_a_removed_model_draws_what_was_accepted(routers: list[Front], keys: dict[str, str]) -> None:
    one, other = routers
    await add(one, keys["ops"], "new")
    await become(routers, "new", "ready")
    headers = bearer(keys["bob"])
    drawing = {"prompt": "endless", "model": "new", "seed": 2}
    job_id = (await other.http.post("/generate", json=drawing, headers=headers)).json()["job_id"]
    second = {"prompt": "endless", "seed": 2, "hires": {"scale": 1.5, "model": "new"}}
    by_second_pass = (await other.http.post("/generate", json=second, headers=headers)).json()["job_id"]
    await remove(one, keys["ops"], "new")
    await asyncio.sleep(0.3)  # several looks of both
    shown = (await one.http.get("/admin/models", headers=bearer(keys["ops"]))).json()["models"]
    assert {(model["name"], model["unfinished"]) for model in shown} >= {("new", 2)}
    assert (await one.service.store.get(job_id)).state is JobState.RUNNING
    await other.service.cancel(job_id)
    await asyncio.sleep(0.3)
    assert state_of(one, "new") == "removing"
    await other.service.cancel(by_second_pass)
    await become(routers, "new", None)


async def test_a_restricted_model_is_there_for_its_tenants_alone(routers: list[Front], keys: dict[str, str]) -> None:
    one, other = routers
    await add(one, keys["ops"], "new", tenants=["alice"])
    await become(routers, "new", "ready")
    assert await asked(other, keys["alice"], "new") == [200] * 6
    assert await asked(other, keys["bob"], "new") == await asked(other, keys["bob"], "newt") == UNKNOWN
    assert all(names == CONFIGURED for names in await listed(other, keys["bob"]))


async def test_limits_loras_and_controlnets_are_checked_as_of_any_model(
    routers: list[Front], keys: dict[str, str]
) -> None:
    one, other = routers
    await add(one, keys["ops"], "new", limits={**SIZES["limits"], "steps": {"min": 10, "max": 15}})
    await become(routers, "new", "ready")
    for request, field in (
        ({"steps": 20}, "steps"),
        ({"width": 1024}, "width"),
        ({"loras": [{"name": "none"}]}, "loras"),
        ({"prompt_2": "x"}, "prompt_2"),
    ):
        refused = await other.http.post(
            "/generate", json={"prompt": "x", "model": "new", **request}, headers=bearer(keys["bob"])
        )
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, field), refused.text
    wider = {"limits": {"width": {"min": 128, "max": 1024}}}
    refused = await one.http.patch("/admin/models/new", json=wider, headers=bearer(keys["ops"]))
    assert (refused.status_code, "the memory is planned" in refused.text) == (422, True)


async def test_a_router_that_dies_before_the_job_is_written_leaves_no_model_in_between(
    routers: list[Front], keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = routers
    settings = {"source": "/srv/new.safetensors", "family": "sd15"}
    content = {"settings": settings, "state": "adding", "job": one.service.store.new_id()}
    await one.service.live.change(EntryKind.CHECKPOINT, "new", lambda _: content, Author("ops", None))
    await asyncio.sleep(0.2)
    assert state_of(one, "new") == "adding"
    monkeypatch.setattr(added_models, "_JOB_S", 0.1)
    await become(routers, "new", "failed")
    await remove(one, keys["ops"], "new")
    await become(routers, "new", None)


def damaged(folder: Path, hollow: Path) -> dict[str, tuple[dict[str, Any], str, str]]:
    """By what is wrong with a model: fields of the request, the field that is named, and a part of the message."""
    (folder.parent / "secret").mkdir()
    outside = folder.parent / "secret" / "outside.safetensors"
    outside.hardlink_to(hollow)
    (folder / "linked.safetensors").symlink_to(outside)
    (folder / "circle").symlink_to(folder / "circle")
    cut = write_hollow(folder / "cut.safetensors", "sd15")
    os.truncate(cut, cut.stat().st_size - 1)
    (folder / "old.ckpt").write_bytes(b"\x80\x02")
    (folder / "pickle.safetensors").write_bytes(b"\x80\x02}q\x00." + bytes(100))
    save_file({"other": np.zeros(3, np.float32)}, folder / "other.safetensors")
    write_hollow(folder / "xl.safetensors", "sdxl")
    (folder / "empty").mkdir()
    (folder / "leak").mkdir()
    (folder / "leak" / "model_index.json").symlink_to(outside)
    outside_message = "in none of the folders"
    return {
        "outside": ({"source": str(outside)}, "source", outside_message),
        "above": ({"source": "../secret/outside.safetensors"}, "source", outside_message),
        "nowhere": ({"source": "/etc/nothing.safetensors"}, "source", outside_message),
        "link": ({"source": "linked.safetensors"}, "source", outside_message),
        "circle": ({"source": "circle"}, "source", outside_message),
        "link in a folder": ({"source": "leak", "family": "sd15"}, "source", outside_message),
        "other vae": ({"vae": str(outside)}, "vae", outside_message),
        "no name of a file": ({"source": "\x00"}, "source", outside_message),
        "hub": ({"source": "owner/name", "family": "sd15"}, "source", "no such file or folder"),
        "missing": ({"source": "missing.safetensors"}, "source", "no such file or folder"),
        "pickle": ({"source": "old.ckpt", "family": "sd15"}, "source", "pickle"),
        "pickle by another name": ({"source": "pickle.safetensors"}, "source", "pickle"),
        "cut short": ({"source": "cut.safetensors"}, "source", "cut short"),
        "other tensors": ({"source": "other.safetensors"}, "source", "expected a UNet's tensors"),
        "other family": ({"source": "xl.safetensors", "family": "sd15"}, "source", "expected a UNet of family sd15"),
        "empty": ({"source": "empty", "family": "sd15"}, "source", "model_index.json"),
        "folder without family": ({"source": "empty"}, "family", "say `family` (sd15 or"),
        "refiner": ({"family": "sdxl-refiner"}, "family", "a refiner draws nothing by itself"),
        "known": ({"name": "demo-sd15"}, "name", "is a model of the configuration file"),
        "unknown field": ({"ready": True}, "ready", "unknown field"),
        "steps": ({"defaults": {"steps": 99}}, "defaults.steps", "outside limits.steps"),
        "lora": ({"loras": [{"name": "none"}]}, "loras", "LoRA"),
        "name": ({"name": "a b"}, "name", "pattern"),
    }


async def test_what_cannot_be_a_model_is_refused_before_anything_is_stored(
    routers: list[Front], keys: dict[str, str], folder: Path, hollow: Path
) -> None:
    one, _ = routers
    for wrong, (fields, field, message) in damaged(folder, hollow).items():
        body = {"name": "new", "source": "new.safetensors", **SIZES, **fields}
        answer = await one.http.post("/admin/models", json=body, headers=bearer(keys["ops"]))
        assert answer.status_code == 422, (wrong, answer.text)
        error = answer.json()["error"]
        assert message in error["message"], (wrong, error)
        assert error.get("field", field) == field, (wrong, error)
    assert (one.service.live.version, one.service.runner.depth()) == (0, (0, 0))
    for who in ("alice", "bob"):
        answer = await one.http.post("/admin/models", json={"name": "new", "source": "x"}, headers=bearer(keys[who]))
        assert answer.status_code == 403
        assert (await one.http.delete("/admin/models/demo-sd15", headers=bearer(keys[who]))).status_code == 403
    for name, reason in (("none", "there is none"), ("demo-sd15", "it is in the configuration file")):
        assert reason in (await remove(one, keys["ops"], name, 404))["error"]["message"]


async def test_without_folders_and_without_a_classifier_none_is_added(
    raw_settings: dict[str, Any], stages: Stages, folder: Path
) -> None:
    body = {"name": "new", "source": "new.safetensors", **SIZES}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        answer = await one.http.post("/admin/models", json=body)
        assert (answer.status_code, "the settings name" in answer.text) == (422, True)
    unjudged = Settings.model_validate({**raw_settings, "registry": {"folders": [str(folder)]}})
    async with front(unjudged, stages) as one:
        answer = await one.http.post("/admin/models", json=body)
        assert (answer.status_code, "knows the demo models' images alone" in answer.text) == (422, True)
