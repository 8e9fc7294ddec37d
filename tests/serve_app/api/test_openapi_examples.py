"""The OpenAPI document shows what may be asked, and each example is answered."""

import json
from typing import Any

from tests.serve_app.front import Front
from tests.serve_app.images.pictures import file_of, gradient

JSON, FORM = "application/json", "multipart/form-data"


async def calls(running: Front) -> dict[tuple[str, str], Any]:
    """The document's calls by path and method."""
    document = (await running.http.get("/openapi.json")).json()
    return {(path, method): call for path, methods in document["paths"].items() for method, call in methods.items()}


async def test_every_body_and_every_parameter_has_its_example(running: Front) -> None:
    with_body = 0
    for path, call in (await calls(running)).items():
        contents = call.get("requestBody", {}).get("content", {})
        with_body += bool(contents)
        assert all("example" in content for content in contents.values()), path
        for parameter in call.get("parameters", ()):
            schema = parameter["schema"]
            assert "examples" in schema, (path, parameter["name"])
    assert with_body >= 14


async def test_each_example_is_answered(running: Front) -> None:
    for (path, _), call in (await calls(running)).items():
        url = path
        for parameter in call.get("parameters", ()):
            if parameter["in"] == "path":
                url = url.replace(f"{{{parameter['name']}}}", parameter["schema"]["examples"][0])
        for kind, content in call.get("requestBody", {}).get("content", {}).items():
            example = content["example"]
            if kind == JSON:
                answer = await running.http.post(url, json=example, headers={"prefer": "wait=30"})
            elif path == "/generate":
                parts = {
                    "request": (None, json.dumps(example["request"]), JSON),
                    "image": file_of(gradient(128, 128)),
                }
                answer = await running.http.post(url, files=parts, headers={"prefer": "wait=30"})
            elif kind == FORM:
                answer = await running.http.post(url, data=example, files={"image": file_of(gradient(256, 256))})
            else:  # the bytes of a file
                continue
            assert answer.status_code == 200, (path, answer.text)
