"""A matrix makes every combination of its axes' values, and refuses what makes no request."""

from typing import Any

import pytest

from deployments.engine.errors import InvalidRequest
from serve_app.batches.matrix import Matrix
from serve_app.config.settings import PromptStyle
from serve_app.schemas.batch_request import BatchRequest
from serve_app.schemas.validation import validated

STYLES = {
    "studio": PromptStyle(prompt="{prompt}, studio light", negative_prompt="blurry"),
    "ink": PromptStyle(prompt="ink drawing"),
}


def matrix(request: dict[str, Any], *axes: dict[str, Any], most: int = 1000, **fields: Any) -> Matrix:
    body = {"request": request, "axes": list(axes), **fields}
    return Matrix.of(validated(BatchRequest, body), STYLES, most)


def test_the_first_axis_goes_fastest() -> None:
    one = matrix(
        {"prompt": "a circle"},
        {"field": "seed", "values": [1, 2, 3]},
        {"field": "guidance_scale", "values": [3.5, 7.0]},
        {"field": "scheduler", "values": ["euler", "ddim"]},
    )
    assert (one.total, one.sizes) == (12, (3, 2, 2))
    cells = [one.request(cell) for cell in range(12)]
    assert [cell.seed for cell in cells] == [1, 2, 3] * 4
    assert [cell.guidance_scale for cell in cells] == ([3.5] * 3 + [7.0] * 3) * 2
    assert [cell.scheduler for cell in cells] == ["euler"] * 6 + ["ddim"] * 6
    assert one.places(7) == (1, 0, 1)
    assert one.title(7) == "seed: 2, guidance_scale: 3.5, scheduler: ddim"
    assert one.labels(1) == ("3.5", "7.0")
    assert Matrix.model_validate_json(one.model_dump_json()) == one


def test_loras_are_weighed_by_their_names() -> None:
    one = matrix(
        {"prompt": "x", "loras": [{"name": "a", "weight": 0.1}]},
        {"lora": "a", "values": [0.5, 1]},
        {"lora": "b", "values": [0, 0.7]},
    )
    weights = [{lora.name: lora.weight for lora in one.request(cell).loras} for cell in range(4)]
    assert weights == [{"a": 0.5, "b": 0}, {"a": 1, "b": 0}, {"a": 0.5, "b": 0.7}, {"a": 1, "b": 0.7}]


def test_texts_of_the_prompts_are_replaced_and_styles_put_around() -> None:
    one = matrix(
        {"negative_prompt": "a red sky"},
        {"field": "prompt", "values": ["a red circle", "a red star"]},
        {"replace": "red", "values": ["red", "deep blue"], "label": "colour"},
        {"field": "styles", "values": ["", "studio", ["studio", "ink"]]},
        styles=["ink"],
    )
    assert one.request(3).prompt == "a deep blue star, ink drawing"
    assert one.request(3).negative_prompt == "a deep blue sky"
    assert one.request(4).prompt == "a red circle, ink drawing, studio light"
    assert one.request(4).negative_prompt == "a red sky, blurry"
    assert one.request(8).prompt == "a red circle, ink drawing, studio light, ink drawing"
    assert one.title(3) == "prompt: a red star, colour: deep blue, styles: "


def test_objects_and_their_fields() -> None:
    one = matrix(
        {"prompt": "x", "loras": [{"name": "a"}]},
        {"field": "hires.strength", "values": [0.3, 0.6]},
        {"field": "loras.0.text_weight", "values": [0.2]},
        {"field": "refiner", "values": [False, {"switch_at": 0.8}]},
    )
    last = one.request(3)
    assert last.hires is not None
    assert last.hires.strength == 0.6
    assert last.loras[0].text_weight == 0.2
    assert last.refiner is not False
    assert one.request(1).refiner is False
    assert one.labels(2) == ("false", '{"switch_at": 0.8}')


SEEDS = {"field": "seed", "values": [1]}


@pytest.mark.parametrize(
    ("request_", "axes", "fields", "message"),
    [
        ({}, [SEEDS], {}, "prompt is missing"),
        ({"prompt": "x"}, [{"field": "sead", "values": [1]}], {}, "unknown field 'sead'; fields: styles, "),
        ({"prompt": "x"}, [{"field": "steps", "values": [5, "many"]}], {}, "steps is 'many'"),
        ({"prompt": "x", "more": 1}, [SEEDS], {}, "unknown field 'more'"),
        ({"prompt": "x"}, [{"values": [1]}], {}, "an axis has one of field, lora and replace"),
        ({"prompt": "x"}, [{"field": "seed", "lora": "a", "values": [1]}], {}, "an axis has one of"),
        ({"prompt": "x"}, [{"field": "seed", "values": []}], {}, "at least 1 item"),
        ({"prompt": "x"}, [], {}, "at least 1 item"),
        ({"prompt": "x"}, [{"replace": "y", "values": ["z"]}], {}, "no prompt of the request has the text"),
        ({"prompt": "x"}, [{"field": "styles", "values": ["oil"]}], {}, "unknown style 'oil'; styles: studio, ink"),
        ({"prompt": "x"}, [{"field": "styles", "values": [3]}], {}, "a style is 3"),
        ({"prompt": "x"}, [SEEDS], {"styles": ["oil"]}, "unknown style 'oil'"),
        ({"prompt": 3}, [SEEDS], {"styles": ["ink"]}, "prompt is 3: expected a string"),
        ({"prompt": "x"}, [{"field": "loras.0.weight", "values": [1]}], {}, "loras is a JSON object"),
        ({"prompt": "x", "loras": []}, [{"field": "loras.0.weight", "values": [1]}], {}, "list has 0 objects"),
        ({"prompt": "x"}, [{"field": "prompt.x", "values": [1]}], {}, "isn't a field of an object"),
        ({"prompt": "x", "loras": 3}, [{"lora": "a", "values": [1]}], {}, "loras must be a list"),
        ({"prompt": "x"}, [{"field": "seed", "values": list(range(50))}] * 2, {}, "make 2500 requests, at most 1000"),
    ],
)
def test_what_is_no_matrix(
    request_: dict[str, Any], axes: list[dict[str, Any]], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        matrix(request_, *axes, **fields)
    assert message in str(refused.value)
