"""The OpenAPI document shows what may be asked, and each example is answered."""

import json
from typing import Any

import pytest

from serve_app.api.openapi_examples import BODY_EXAMPLES
from tests.serve_app.front import Front
from tests.serve_app.images.pictures import file_of, gradient


async def test_every_body_and_every_parameter_has_its_example(running: Front) -> None:
    document = (await running.http.get("/openapi.json")).json()
    shown = set()
    for path, calls in document["paths"].items():
        for method, call in calls.items():
            for content in call.get("requestBody", {}).get("content", {}).values():
                assert "example" in content, (method, path)
                shown.add(path)
            for parameter in call.get("parameters", ()):
                assert "example" in parameter, (method, path, parameter["name"])
    assert shown == set(BODY_EXAMPLES)


@pytest.mark.parametrize("path", BODY_EXAMPLES)
async def test_an_example_is_answered(running: Front, path: str) -> None:
    url, body = path.replace("{model_id}", "demo-sd15"), BODY_EXAMPLES[path]
    if path in ("/v1/images/edits", "/v1/images/variations"):
        answer = await running.http.post(url, data=body, files={"image": file_of(gradient(256, 256))})
    else:
        answer = await running.http.post(url, json=body, headers={"prefer": "wait=30"})
    assert answer.status_code == 200, answer.text


async def test_the_form_s_example_is_answered(running: Front) -> None:
    """Of POST /generate, whose form holds the JSON."""
    document = (await running.http.get("/openapi.json")).json()
    content: dict[str, Any] = document["paths"]["/generate"]["post"]["requestBody"]["content"]
    parts = {
        "request": (None, json.dumps(content["multipart/form-data"]["example"]["request"]), "application/json"),
        "image": file_of(gradient(128, 128)),
    }
    assert (await running.http.post("/generate", files=parts, headers={"prefer": "wait=30"})).status_code == 200
