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
