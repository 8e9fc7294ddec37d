"""Forge's script FreeU Integrated: what it asks of us, what is said, what is refused."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from serve_app.api.a1111.freeu import TITLES
from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.api.a1111.a1111_client import SMALL
from tests.serve_app.front import Front, front


@pytest.fixture
async def running(settings: Settings, stages: Stages) -> AsyncIterator[Front]:
    async with front(settings, stages) as one:
        yield one


async def asked(one: Front, title: str, script: Any) -> httpx.Response:
    body = {"prompt": "a red circle", "steps": 10, **SMALL, "alwayson_scripts": {title: script}}
    return await one.http.post("/sdapi/v1/txt2img", json=body)


async def factors_of(one: Front, title: str, script: Any) -> tuple[list[float], list[str]]:
    """b1, b2, s1 and s2 as the image was drawn, and what was said."""
    answer = await asked(one, title, script)
    assert answer.status_code == 200, answer.text
    request, info = (await one.newest()).request, json.loads(answer.json()["info"])
    return [request[f"freeu_{name}"] for name in ("b1", "b2", "s1", "s2")], info["warnings"]


@pytest.mark.parametrize("title", [*TITLES, TITLES[0].lower()])
async def test_its_arguments(running: Front, title: str) -> None:
    arguments = [True, 1.3, "1.4", 0.9, 0.2, 0, 1]
    factors, warnings = await factors_of(running, title, {"args": arguments})
    assert factors == [1.3, 1.4, 0.9, 0.2]
    assert ["FreeU's first version" in one for one in warnings] == [True]
    infotext = json.loads((await asked(running, title, {"args": arguments})).json()["info"])["infotexts"][0]
    assert "freeu_enabled: True, freeu_b1: 1.3, freeu_b2: 1.4, freeu_s1: 0.9, freeu_s2: 0.2," in infotext


async def test_arguments_that_are_left_out_are_forges_own(running: Front) -> None:
    assert (await factors_of(running, TITLES[0], {"args": [True]}))[0] == [1.01, 1.02, 0.99, 0.95]
    assert (await factors_of(running, TITLES[1], {"args": [True, 1.5, None, 0.5]}))[0] == [1.5, 1.02, 0.5, 0.95]


@pytest.mark.parametrize("script", [{"args": [False, "sd1.5", 2]}, {"args": []}, {}, {"args": [0, 1.3]}, None])
async def test_a_script_that_is_off(running: Front, script: Any) -> None:
    assert await factors_of(running, TITLES[0], script) == ([1.0] * 4, [])


async def test_a_part_of_the_steps_is_left_out_and_said_or_refused(
    running: Front, raw_settings: dict[str, Any], stages: Stages
) -> None:
    script = {"args": [True, 1.3, 1.4, 0.9, 0.2, 0.25, 0.5]}
    factors, warnings = await factors_of(running, TITLES[0], script)
    assert factors == [1.3, 1.4, 0.9, 0.2]
    assert any("0.25 to 0.5" in one for one in warnings)
    raw_settings["a1111"] = {"strict": True}
    async with front(Settings.model_validate(raw_settings), stages) as strict:
        answer = await asked(strict, TITLES[0], script)
        assert (answer.status_code, answer.json()["body"]) == (422, "alwayson_scripts")
        assert (await asked(strict, TITLES[0], {"args": [True]})).status_code == 200


@pytest.mark.parametrize(
    ("script", "word"),
    [
        ({"args": [True, 9]}, "b1 is 9"),
        ({"args": [True, "sd1.5", 1.3]}, "b1 is 'sd1.5'"),
        ({"args": [True, 1, 1, -1]}, "s1 is -1"),
        ({"args": [True, 1, 1, 1, 1, 2]}, "start is 2"),
        ({"args": ["perhaps"]}, "enabled is 'perhaps'"),
        ({"args": {"enabled": True}}, "must be a list"),
    ],
)
async def test_what_is_refused(running: Front, script: Any, word: str) -> None:
    answer = await asked(running, TITLES[0], script)
    assert (answer.status_code, answer.json()["body"]) == (422, "alwayson_scripts"), answer.text
    assert word in answer.json()["detail"]
    assert TITLES[0] in answer.json()["detail"]
