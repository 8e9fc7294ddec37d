"""The script of sd-dynamic-prompts: a choice for each image by its seed; what is said, and what is refused."""

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.config.settings import Settings
from serve_app.planning.dynamic_prompts import expanded
from serve_app.stages.client import Stages
from tests.serve_app.api.a1111.a1111_client import SMALL
from tests.serve_app.front import Front, front

TITLE = "Dynamic Prompts v2.17.1"
TEMPLATE = "a {large|small|tiny} __colours__ circle"
WILDCARDS = {"colours": ("red", "blue", "green")}
# as the web UI's page sends them
SHOWN = [True, False, 1, False, False, False, 1.1, 1.5, 100, 0.7, False, False, True, False, False, 0, "a model", ""]


@pytest.fixture
def varied(raw_settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "colours.txt").write_text("\n".join(WILDCARDS["colours"]))
    raw_settings["prompts"] = {"wildcards": str(tmp_path)}
    raw_settings["safety"] = {"mode": "off", "classifier": None}
    raw_settings["a1111"] = {"styles": {"big": {"prompt": "a {huge|giant} {prompt}"}}}
    return raw_settings


@pytest.fixture
async def running(varied: dict[str, Any], stages: Stages) -> AsyncIterator[Front]:
    async with front(Settings.model_validate(varied), stages) as one:
        yield one


def with_argument(index: int, value: Any) -> list[Any]:
    return [*SHOWN[:index], value, *SHOWN[index + 1 :]]


async def asked(one: Front, arguments: Any = None, title: str = TITLE, **fields: Any) -> httpx.Response:
    scripts = {title: {} if arguments is None else {"args": arguments}}
    body = {"prompt": TEMPLATE, "steps": 10, **SMALL, "alwayson_scripts": scripts, **fields}
    return await one.http.post("/sdapi/v1/txt2img", json=body)


def info_of(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    info: dict[str, Any] = json.loads(answer.json()["info"])
    return info


@pytest.mark.parametrize("arguments", [SHOWN, [True], [], None])
@pytest.mark.parametrize("title", [TITLE, "dynamic prompts v2.3.1"])
async def test_the_seed_chooses(running: Front, title: str, arguments: Any) -> None:
    info = info_of(await asked(running, arguments, title))
    assert (info["prompt"], info["warnings"]) == (expanded("prompt", TEMPLATE, 2, WILDCARDS), [])
    assert info["infotexts"][0].startswith(info["prompt"])


async def test_each_image_has_a_choice_by_its_seed(running: Front) -> None:
    answer = await asked(running, SHOWN, batch_size=2, n_iter=2, negative_prompt="a {cat|dog}")
    info = info_of(answer)
    assert info["all_seeds"] == [2, 3, 4, 5]
    assert info["all_prompts"] == [expanded("prompt", TEMPLATE, seed, WILDCARDS) for seed in info["all_seeds"]]
    assert info["all_negative_prompts"] == [expanded("x", "a {cat|dog}", seed, {}) for seed in info["all_seeds"]]
    assert len(set(info["all_prompts"])) > 1
    assert len(answer.json()["images"]) == 4
    alone = info_of(await asked(running, SHOWN, seed=4, negative_prompt="a {cat|dog}"))
    assert alone["infotexts"][0] == info["infotexts"][2]


async def test_drawn_over_an_image(running: Front) -> None:
    picture = info_and_picture(await asked(running, [False]))
    answer = await running.http.post(
        "/sdapi/v1/img2img",
        json={"prompt": TEMPLATE, "steps": 10, **SMALL, "init_images": [picture], "n_iter": 3,
              "alwayson_scripts": {TITLE: {"args": SHOWN}}},
    )  # fmt: skip
    assert info_of(answer)["all_prompts"] == [expanded("prompt", TEMPLATE, seed, WILDCARDS) for seed in (2, 3, 4)]


def info_and_picture(answer: httpx.Response) -> str:
    assert info_of(answer)["prompt"] == TEMPLATE  # it is off
    picture: str = answer.json()["images"][0]
    assert base64.b64decode(picture)
    return picture


async def test_images_that_have_one_prompt_are_one_job(running: Front) -> None:
    info = info_of(await asked(running, SHOWN, n_iter=2, subseed=7, subseed_strength=0.5))
    assert (info["all_seeds"], info["all_subseeds"]) == ([2, 2], [7, 8])
    assert info["all_prompts"] == [expanded("prompt", TEMPLATE, 2, WILDCARDS)] * 2
    assert len((await running.newest()).result["images"]) == 2  # type: ignore[index]
    info_of(await asked(running, SHOWN, prompt="a circle", n_iter=2))
    assert len((await running.newest()).result["images"]) == 2  # type: ignore[index]


async def test_a_fixed_seed(running: Front) -> None:
    info = info_of(await asked(running, with_argument(10, True), n_iter=2))
    assert info["all_seeds"] == [2, 2]
    assert info["all_prompts"] == [expanded("prompt", TEMPLATE, 2, WILDCARDS)] * 2


async def test_a_style_s_variants_are_chosen_too(running: Front) -> None:
    info = info_of(await asked(running, SHOWN, prompt="circle", styles=["big"], n_iter=8))
    assert set(info["all_prompts"]) == {"a huge circle", "a giant circle"}


@pytest.mark.parametrize(("index", "word"), [(3, "is_magic_prompt"), (5, "is_attention_grabber"), (11, "unlink_seed")])
async def test_what_can_t_be_done_is_left_out_and_said_or_refused(
    running: Front, varied: dict[str, Any], stages: Stages, index: int, word: str
) -> None:
    arguments = with_argument(index, True)
    assert [word in one for one in info_of(await asked(running, arguments))["warnings"]] == [True]
    varied["a1111"] = {"strict": True}
    async with front(Settings.model_validate(varied), stages) as strict:
        answer = await asked(strict, arguments)
        assert (answer.status_code, answer.json()["body"]) == (422, "alwayson_scripts")
        assert (await asked(strict, SHOWN)).status_code == 200


@pytest.mark.parametrize(
    ("fields", "field", "word"),
    [
        ({"arguments": with_argument(1, True)}, "alwayson_scripts", "is_combinatorial"),
        ({"arguments": with_argument(4, True)}, "alwayson_scripts", "is_feeling_lucky"),
        ({"arguments": with_argument(13, True)}, "alwayson_scripts", "enable_jinja_templates"),
        ({"arguments": with_argument(14, True)}, "alwayson_scripts", "no_image_generation"),
        ({"arguments": ["perhaps"]}, "alwayson_scripts", "is_enabled is 'perhaps'"),
        ({"arguments": "all"}, "alwayson_scripts", "must be a list"),
        ({"arguments": SHOWN, "prompt": "a {red"}, "prompt", "without its }"),
        ({"arguments": SHOWN, "prompt": "__none__", "n_iter": 2}, "prompt", "names the wildcard 'none'"),
        ({"arguments": SHOWN, "n_iter": 1000}, "batch_size", "at most"),
    ],
)
async def test_what_is_refused(running: Front, fields: dict[str, Any], field: str, word: str) -> None:
    answer = await asked(running, **fields)
    assert (answer.status_code, answer.json()["body"]) == (422, field), answer.text
    assert word in answer.json()["detail"]


@pytest.mark.parametrize("script", [{"args": [False, True]}, {"args": [0]}])
async def test_a_script_that_is_off(running: Front, script: dict[str, Any]) -> None:
    assert info_of(await asked(running, script["args"]))["prompt"] == TEMPLATE
