"""Requests before any model: an object of known fields."""

from typing import Any

import pytest
from pydantic import create_model

from deployments.engine.errors import InvalidRequest
from serve_app.api.openai.batches import OpenAIBatchRequest
from serve_app.schemas.batch_request import BatchRequest
from serve_app.schemas.generation_request import GenerationRequest, HiresRequest, RequestPart
from serve_app.schemas.upscale_request import UpscaleRequest
from serve_app.schemas.validation import validated


@pytest.mark.parametrize("body", [[], "text", 3, None, True, 1.5])
def test_the_body_is_an_object(body: object) -> None:
    with pytest.raises(InvalidRequest, match="JSON object"):
        validated(GenerationRequest, body)


def test_the_prompt_is_needed() -> None:
    with pytest.raises(InvalidRequest, match="prompt is missing"):
        validated(GenerationRequest, {})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("guidance_interval", [0.1, 0.9], "guidance_interval is a JSON array: expected a JSON object"),
        ("loras", {"name": "ink"}, "loras is a JSON object: expected a JSON array"),
        ("loras", ["ink"], "loras.0 is 'ink': expected a JSON object"),
    ],
)
def test_a_wrong_type_is_named_as_in_json(field: str, value: object, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        validated(GenerationRequest, {"prompt": "a ring", field: value})
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (GenerationRequest, {"prompt": "a ring", "seed": 4}),
        (UpscaleRequest, {"image": "aGVsbG8=", "scale": 2}),
        (BatchRequest, {"request": {"prompt": "a ring"}, "axes": [{"field": "seed", "values": [1]}]}),
        (OpenAIBatchRequest, {"input_file_id": "file-1", "endpoint": "/v1/images/edits", "completion_window": "24h"}),
    ],
)
def test_a_later_version_with_more_fields_finds_the_request_the_same(
    model: type[RequestPart], body: dict[str, Any]
) -> None:
    later: Any = create_model("Later", __base__=model, new_number=(int, 3), new_object=(HiresRequest, HiresRequest()))
    identity = validated(model, body).identity()
    assert identity == body
    assert validated(later, body).identity() == identity
    assert validated(later, {**body, "new_number": 3, "new_object": {"scale": None}}).identity() == identity
    assert validated(later, {**body, "new_number": 4}).identity() != identity


def test_more_fields_in_a_part_of_a_request_leave_it_the_same() -> None:
    part: Any = create_model("LaterHires", __base__=HiresRequest, new_number=(int, 3))
    later: Any = create_model("Later", __base__=GenerationRequest, hires=(part | None, None))
    body = {"prompt": "a ring", "hires": {}}
    assert validated(later, body).identity() == validated(GenerationRequest, body).identity() == body


def test_an_object_of_nothing_but_defaults_is_not_the_same_as_none() -> None:
    request, without = GenerationRequest(prompt="a ring", hires=HiresRequest()), GenerationRequest(prompt="a ring")
    assert request.identity() != without.identity()
