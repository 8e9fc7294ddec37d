"""`darkroom models set, drain, alias, …`: what they ask of a service, and how they show it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.ldm_export import write_hollow
from tests.serve_app.cli.command_line import darkroom, darkroom_beside, document
from tests.serve_app.front import Front, front, until
from tests.serve_app.served import served


async def test_defaults_limits_and_aliases(url: str, running: Front) -> None:
    result = await darkroom_beside(
        "models", "set", "demo-sd15", "steps=5", "sampler=Euler a", "limits.steps=2..30", "--url", url, "--json"
    )
    assert result.exit_code == 0, result.output
    [model, *_] = document(result)["models"]
    assert model["changed"] == {
        "defaults": {"steps": 5, "sampler": "Euler a"},
        "limits": {"steps": {"min": 2, "max": 30}},
    }
    assert running.service.live.settings.models["demo-sd15"].defaults.sampler == "euler_a"
    result = await darkroom_beside("models", "set", "demo-sd15", "steps=", "sampler=", "limits.steps=", "--url", url)
    assert (result.exit_code, running.service.live.entries.models) == (0, {})
    hashed = "0123456789abcdef" * 4
    result = await darkroom_beside("models", "alias", "shapes", "demo-sdxl", "--sha256", hashed, "--url", url)
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["MODEL", "STATE", "JOBS", "FOR", "CHANGED"]
    assert rows[1][:4] == ["demo-sd15", "serves", "0", "everybody"]
    assert rows[-1] == ["shapes", "means", "demo-sdxl", hashed]
    result = await darkroom_beside("models", "unalias", "shapes", "--url", url)
    assert "shapes" not in result.stdout
    result = await darkroom_beside("models", "changes", "--url", url, "--limit", 2)
    newest, before = [line.split()[0] for line in result.stdout.splitlines()[1:]]
    assert (newest, before) == ("4", "3")
    shown = document(await darkroom_beside("models", "changes", "--url", url, "--json"))
    assert [line["version"] for line in shown["changes"]] == [4, 3, 2, 1]


async def test_drains_until_the_last_job_has_ended(url: str, running: Front) -> None:
    await running.generate("endless", wait=None, model="demo-sdxl")
    draining = asyncio.create_task(darkroom_beside("models", "drain", "demo-sdxl", "--wait", "--url", url))
    await until(lambda: not running.service.live.settings.models["demo-sdxl"].serving)
    assert not draining.done()
    await running.service.cancel((await running.newest()).id)
    result = await draining
    assert result.exit_code == 0, result.output
    assert "1 jobs are unfinished" in result.stderr
    assert ["demo-sdxl", "drained", "0"] in [line.split()[:3] for line in result.stdout.splitlines()]
    result = await darkroom_beside("models", "resume", "demo-sdxl", "--url", url)
    assert "drained" not in result.stdout


@pytest.fixture
async def adding(raw_settings: dict[str, Any], stages: Stages, tmp_path: Path) -> AsyncIterator[Front]:
    """A service that models can be added to."""
    for name in ("new", "unloadable", "endless"):
        write_hollow(tmp_path / f"{name}.safetensors", "sd15")
    changes = {
        "registry": {"poll_s": 0.05, "folders": [str(tmp_path)]},
        "safety": {"classifier": "package:demo_models/demo-nsfw"},
    }
    async with front(Settings.model_validate(raw_settings | changes), stages) as one:
        yield one


async def test_models_are_added_and_removed(adding: Front) -> None:
    async with served(adding) as url:
        small = ("width=256", "height=256", "steps=10")
        result = await darkroom_beside("models", "add", "new", "--source", "new.safetensors", *small, "--url", url)
        assert result.exit_code == 0, result.output
        assert ["new", "serves", "0", "everybody"] in [line.split()[:4] for line in result.stdout.splitlines()]
        assert adding.service.live.settings.models["new"].defaults.steps == 10
        result = await darkroom_beside(
            "models", "add", "unloadable", "--source", "unloadable.safetensors", "--url", url
        )
        assert (result.exit_code, "unet.safetensors is missing" in result.stderr) == (1, True), result.output
        result = await darkroom_beside(
            "models", "add", "endless", "--source", "endless.safetensors", "--no-wait", "--url", url
        )
        assert ["endless", "adding"] in [line.split()[:2] for line in result.stdout.splitlines()]
        assert "unloadable wasn't added: /srv/models/secret/unet.safetensors is missing" in result.stderr
        for name in ("new", "unloadable", "endless"):
            result = await darkroom_beside("models", "remove", name, "--url", url)
            assert result.exit_code == 0, result.output
        await until(lambda: not adding.service.live.entries.checkpoints)
        result = await darkroom_beside(
            "models", "add", "new", "--source", "/etc/new.safetensors", "--url", url, "--json"
        )
        error = document(result)["error"]
        assert (result.exit_code, error["code"], error["field"]) == (1, "invalid_request", "source")
        result = await darkroom_beside("models", "remove", "a", "b", "c", "--url", url)
        assert (result.exit_code, "expected a model, or a folder and a name" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("set", "demo-sd15", "steps=99"), "422: defaults.steps (99) is outside limits.steps (10..50)"),
        (("set", "demo-sdxl", "tenants=alice,bob"), "needs API keys"),
        (("drain", "demo-sd15"), "the default must serve"),
        (("drain", "none"), "404: no model 'none'"),
        (("alias", "shapes", "none"), "unknown model 'none'"),
        (("unalias", "shapes"), "404: no alias 'shapes'"),
    ],
)
async def test_what_the_service_refuses(url: str, arguments: tuple[str, ...], message: str) -> None:
    result = await darkroom_beside("models", *arguments, "--url", url)
    assert (result.exit_code, message in result.stderr) == (1, True), result.stderr


def test_a_field_without_a_value() -> None:
    result = darkroom("models", "set", "demo-sd15", "steps", "--json")
    assert (result.exit_code, document(result)["error"]["message"]) == (1, "'steps' isn't FIELD=VALUE")
