"""The OpenAPI document is valid, shows what may be asked, and each example is answered."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from serve_app.config.settings import Settings
from serve_app.jobs.job import JOB_ID
from serve_app.stages.client import Stages
from tests.ldm_export import write_hollow
from tests.serve_app.front import Front, front
from tests.serve_app.images.pictures import file_of, gradient
from tests.serve_app.keyed import GENERATE_READ, with_keys

JSON, FORM = "application/json", "multipart/form-data"


async def calls(running: Front) -> dict[tuple[str, str], Any]:
    """The document's calls by path and method."""
    document = (await running.http.get("/openapi.json")).json()
    return {(path, method): call for path, methods in document["paths"].items() for method, call in methods.items()}


async def test_the_document_is_valid_and_every_reference_leads_somewhere(running: Front) -> None:
    response = await running.http.get("/openapi.json")
    document = response.json()
    assert document["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(document).validate()
    schemas = document["components"]["schemas"]
    references = re.findall(r'"\$ref": ?"([^"]+)"', response.text)
    assert "#/components/schemas/A1111NamedImage" in references
    assert {reference.removeprefix("#/components/schemas/") for reference in references} <= schemas.keys()


async def test_ids_have_their_pattern(running: Front) -> None:
    job_ids = 0
    for (path, _), call in (await calls(running)).items():
        for parameter in call.get("parameters", ()):
            if parameter["name"] in ("job_id", "cursor"):
                text = next(iter(parameter["schema"].get("anyOf", [parameter["schema"]])))
                assert text["pattern"] == f"^{JOB_ID.pattern}$", path
                job_ids += 1
    assert job_ids == 7


@pytest.mark.parametrize("keyed", [False, True], ids=["without-keys", "with-keys"])
async def test_each_call_says_whether_it_needs_a_key(
    raw_settings: dict[str, Any], stages: Stages, tmp_path: Path, keyed: bool
) -> None:
    if keyed:
        with_keys(raw_settings, tmp_path / "keys", alice=GENERATE_READ)
    async with front(Settings.model_validate(raw_settings), stages) as one:
        document = (await one.http.get("/openapi.json")).json()
        described = await calls(one)
    schemes = document["components"]["securitySchemes"]
    assert {(one["type"], one.get("scheme", one.get("name"))) for one in schemes.values()} == {
        ("http", "bearer"),
        ("http", "basic"),
        ("apiKey", "X-API-Key"),
    }
    assert "security" not in described["/health", "get"]  # public
    ways = [{name: []} for name in schemes]
    assert described["/generate", "post"]["security"] == (ways if keyed else [{}, *ways])
    assert described["/images/{name}", "get"]["security"] == [{}, *ways]  # its signed address is enough


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


async def test_each_example_is_answered(raw_settings: dict[str, Any], stages: Stages, tmp_path: Path) -> None:
    write_hollow(tmp_path / "portraits.safetensors", "sd15")
    changes = {
        "registry": {"folders": [str(tmp_path)]},
        "safety": {"classifier": "package:demo_models/demo-nsfw"},
    }
    async with front(Settings.model_validate(raw_settings | changes), stages) as running:
        await each_example_is_answered(running)


async def each_example_is_answered(running: Front) -> None:
    for (path, method), call in (await calls(running)).items():
        url = path
        for parameter in call.get("parameters", ()):
            if parameter["in"] == "path":
                url = url.replace(f"{{{parameter['name']}}}", parameter["schema"]["examples"][0])
        for kind, content in call.get("requestBody", {}).get("content", {}).items():
            example = content["example"]
            if path == "/v1/batches":
                file = ("lines.jsonl", b"{}")
                uploaded = await running.http.post("/v1/files", data={"purpose": "batch"}, files={"file": file})
                example = example | {"input_file_id": uploaded.json()["id"]}
            if kind == JSON:
                answer = await running.http.request(method, url, json=example, headers={"prefer": "wait=30"})
            elif path == "/generate":
                parts = {
                    "request": (None, json.dumps(example["request"]), JSON),
                    "image": file_of(gradient(128, 128)),
                }
                answer = await running.http.post(url, files=parts, headers={"prefer": "wait=30"})
            elif kind == FORM:
                needed = content["schema"].get("allOf", (None, content["schema"]))[1]["required"]
                files = dict.fromkeys(needed, file_of(gradient(256, 256)))
                answer = await running.http.post(url, data=example, files=files)
            else:  # the bytes of a file
                continue
            assert answer.status_code == (202 if path in ("/batches", "/admin/models") else 200), (path, answer.text)
