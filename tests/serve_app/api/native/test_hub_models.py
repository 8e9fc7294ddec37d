"""Models that are added from the hub: of repositories that are allowed, downloaded whole, checked, drawn, cancelled."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from serve_app.auth.key_file import Scope
from serve_app.config.hub_checkpoints import bytes_in_cache
from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.api.native.test_added_models import SIZES, add, remove, state_of
from tests.serve_app.api.native.test_admin import UNKNOWN, asked, followed, last_lane
from tests.serve_app.cli.command_line import darkroom_beside
from tests.serve_app.front import Front, front, until
from tests.serve_app.hub import COMMIT, hub
from tests.serve_app.keyed import GENERATE_READ, bearer, with_keys
from tests.serve_app.served import served

FROM_HUB = {"source": "someone/tiny", "family": "sd15"}
SIZES_AS_TEXT = [
    ("defaults", "width", "256"),
    ("defaults", "height", "256"),
    ("limits", "width", "128..512"),
    ("limits", "height", "128..512"),
]


@pytest.fixture
def keys(raw_settings: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    return with_keys(raw_settings, tmp_path / "keys", bob=GENERATE_READ, ops=frozenset({Scope.ADMIN}))


@pytest.fixture
def repository(tmp_path: Path, tiny_sd15: Path) -> Path:
    """Of a hub, with what it has besides."""
    folder = Path(shutil.copytree(tiny_sd15, tmp_path / "hub" / "someone" / "tiny"))
    for other in ("unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin", "v1-5.ckpt"):
        (folder / other).write_bytes(b"\x80\x04")
    (folder / "v1-5-pruned.safetensors").write_bytes(b"a single file beside it")
    pickled = Path(shutil.copytree(folder, folder.parent / "pickled"))
    for weights in pickled.glob("*/*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    return folder


@pytest.fixture
def hold() -> Iterator[threading.Event]:
    """Of the last part of the UNet's weights; set at first."""
    event = threading.Event()
    event.set()
    yield event
    event.set()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hugging Face's, of this test alone."""
    folder = tmp_path / "cache" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def sent(repository: Path, cache: Path, hold: threading.Event, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the hub was asked for."""
    with hub(repository.parents[1], {"unet/diffusion_pytorch_model.safetensors": hold}) as (address, files):
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield files
        hold.set()


@pytest.fixture
def raw_settings(raw_settings: dict[str, Any]) -> dict[str, Any]:
    raw_settings["registry"] = {"poll_s": 0.05, "repositories": ["someone/*"], "min_free_bytes": 0}
    raw_settings["safety"] = {"classifier": "package:demo_models/demo-nsfw"}
    return raw_settings


@pytest.fixture
async def routers(
    raw_settings: dict[str, Any], keys: dict[str, str], stages: Stages, sent: list[str]
) -> AsyncIterator[list[Front]]:
    """Two on one database and one cache."""
    settings = Settings.model_validate(raw_settings)
    async with AsyncExitStack() as stack:
        fronts = [await stack.enter_async_context(front(settings, stages, owner=f"router-{n}")) for n in (1, 2)]
        for one in fronts:
            await one.service.live.start()
            stack.push_async_callback(one.service.live.stop)
        yield fronts


async def become(routers: list[Front], name: str, state: str | None) -> None:
    await until(lambda: all(state_of(one, name) == state for one in routers), 120)  # (processes are started)


async def addition(one: Front, key: str, name: str = "new") -> dict[str, Any]:
    models = (await one.http.get("/admin/models", headers=bearer(key))).json()["models"]
    return next(model["added"] for model in models if model["name"] == name)


async def test_a_model_of_the_hub_is_downloaded_and_served(
    routers: list[Front], keys: dict[str, str], sent: list[str], cache: Path, stages: Stages, repository: Path
) -> None:
    one, _ = routers
    answer = await add(one, keys["ops"], "new", **FROM_HUB)
    [added] = [model["added"] for model in answer["models"] if model["name"] == "new"]
    assert (added["state"], added["source"], added["revision"]) == ("downloading", "someone/tiny", COMMIT)
    await become(routers, "new", "ready")
    weights = {name for name in sent if not name.endswith((".json", ".txt"))}
    assert weights == {
        "someone/tiny/unet/diffusion_pytorch_model.safetensors",
        "someone/tiny/vae/diffusion_pytorch_model.safetensors",
        "someone/tiny/text_encoder/model.safetensors",
    }
    assert len(sent) == len(set(sent))  # (one router waited for the other)
    snapshot = cache / "models--someone--tiny" / "snapshots" / COMMIT
    unet = "unet/diffusion_pytorch_model.safetensors"
    assert (snapshot / unet).read_bytes() == (repository / unet).read_bytes()
    lane = await last_lane(stages, "sd15")
    assert lane.added is not None
    assert (lane.added.spec.source, lane.added.spec.revision) == ("someone/tiny", COMMIT)
    for router in routers:
        assert await asked(router, keys["bob"], "new") == [200] * 6
    changes = (await one.http.get("/admin/changes", headers=bearer(keys["ops"]))).json()["changes"]
    steps = [(change["after"]["state"], change["tenant"]) for change in reversed(changes)]
    assert steps == [("downloading", "ops"), ("adding", ""), ("ready", "")]
    job = await one.service.store.get(added["job_id"])
    assert job.tenant == "ops"


async def test_a_download_says_how_far_it_is_and_can_be_cancelled(
    routers: list[Front], keys: dict[str, str], hold: threading.Event, sent: list[str], cache: Path
) -> None:
    one, other = routers
    hold.clear()
    await add(one, keys["ops"], "new", **FROM_HUB)
    await until(lambda: "someone/tiny/unet/diffusion_pytorch_model.safetensors" in sent, 60)
    await until(lambda: bytes_in_cache("someone/tiny", COMMIT) > 0)
    download = (await addition(other, keys["ops"]))["download"]
    assert 0 < download["downloaded_bytes"] < download["bytes"]
    assert await asked(other, keys["bob"], "new") == UNKNOWN
    await remove(other, keys["ops"], "new")
    await become(routers, "new", None)
    assert all(not router.service.added._downloads for router in routers)
    assert (await one.service.store.page(tenant=None, limit=1)).jobs == ()


async def test_the_command_line_waits_for_it(
    routers: list[Front], keys: dict[str, str], repository: Path, hold: threading.Event, sent: list[str]
) -> None:
    hold.clear()
    async with served(routers[0]) as url:
        options = ("--source", "someone/tiny", "--family", "sd15", "--url", url, "--key", keys["ops"])
        sizes = [f"{part}.{name}={value}" for part, name, value in SIZES_AS_TEXT]
        adding = asyncio.create_task(darkroom_beside("models", "add", "new", *options, *sizes))
        await until(lambda: "someone/tiny/unet/diffusion_pytorch_model.safetensors" in sent, 60)
        hold.set()
        added = await adding
        assert added.exit_code == 0, added.output
        assert [line.split()[1] for line in added.stdout.splitlines() if line.startswith("new ")] == ["serves"]
        await remove(routers[0], keys["ops"], "new")
        await become(routers, "new", None)
        (repository / "unet" / "config.json").write_text("{}")
        shutil.rmtree(huggingface_hub.constants.HF_HUB_CACHE)
        failed = await darkroom_beside("models", "add", "new", *options, *sizes)
        assert (failed.exit_code, "new is failed: " in failed.stderr) == (1, True), failed.output


async def test_a_router_that_dies_is_no_download_s_end(
    routers: list[Front], keys: dict[str, str], hold: threading.Event, sent: list[str]
) -> None:
    one, other = routers
    hold.clear()
    await add(one, keys["ops"], "new", **FROM_HUB)
    await until(lambda: "someone/tiny/unet/diffusion_pytorch_model.safetensors" in sent, 60)
    await followed(routers)
    await one.service.added.stop()
    hold.set()
    await become([other], "new", "ready")


async def test_a_repository_that_is_no_such_model_fails_with_the_reason(
    routers: list[Front], keys: dict[str, str], repository: Path
) -> None:
    one, _ = routers
    (repository / "unet" / "config.json").write_text(
        '{"_class_name": "UNet2DConditionModel", "cross_attention_dim": 9}'
    )
    await add(one, keys["ops"], "new", **FROM_HUB)
    await become(routers, "new", "failed")
    assert "unet" in (await addition(one, keys["ops"]))["problem"]
    await remove(one, keys["ops"], "new")
    await become(routers, "new", None)


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"source": "other/tiny"}, "source", "registry.repositories allows no such repository"),
        ({"source": "someone/else/tiny"}, "source", "the settings name, and they name none"),
        ({"source": "someone/nothing"}, "source", "someone/nothing"),
        ({"family": None}, None, "say `family`"),
        ({"vae": "someone/tiny"}, "vae", "the settings name, and they name none"),
        ({"variant": "bf16", "source": "someone/pickled"}, "source", "pickles are never loaded"),
    ],
    ids=["another owner", "no repository's name", "no repository", "no family", "vae", "pickles"],
)
async def test_what_is_refused_before_anything_is_downloaded(
    routers: list[Front],
    keys: dict[str, str],
    sent: list[str],
    fields: dict[str, Any],
    field: str | None,
    message: str,
) -> None:
    one, _ = routers
    body = {name: value for name, value in {"name": "new", **SIZES, **FROM_HUB, **fields}.items() if value is not None}
    answer = await one.http.post("/admin/models", json=body, headers=bearer(keys["ops"]))
    assert (answer.status_code, answer.json()["error"].get("field")) == (422, field), answer.text
    assert message in answer.json()["error"]["message"]
    assert (sent, one.service.live.version) == ([], 0)


@pytest.mark.parametrize(
    ("bounds", "status", "message"),
    [
        ({"max_download_bytes": 1000}, 422, "registry.max_download_bytes"),
        ({"min_free_bytes": 1 << 50}, 503, "no room"),
        ({"repositories": []}, 422, "registry.repositories allows no such"),
    ],
)
async def test_a_download_is_bounded(
    raw_settings: dict[str, Any], stages: Stages, sent: list[str], bounds: dict[str, Any], status: int, message: str
) -> None:
    raw_settings["registry"] |= bounds
    async with front(Settings.model_validate(raw_settings), stages) as one:
        answer = await one.http.post("/admin/models", json={"name": "new", **SIZES, **FROM_HUB})
        assert (answer.status_code, message in answer.text) == (status, True), answer.text
        assert sent == []
