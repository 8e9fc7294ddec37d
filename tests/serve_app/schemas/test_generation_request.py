"""Requests before any model: an object of known fields."""

import pytest

from deployments.engine.errors import InvalidRequest
from serve_app.schemas.generation_request import GenerationRequest
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
