"""No call takes an address to fetch from: none is in the interface, and what is sent all the same opens no socket."""

import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve_app.front import Front

_HOSTS = (
    "127.0.0.1:8000", "localhost:22", "[::1]:8265", "[::ffff:127.0.0.1]", "0", "0.0.0.1", "127.1", "2130706433",
    "0x7f.0.0.1", "0177.0.0.1", "169.254.169.254/latest/meta-data/", "metadata.google.internal", "10.0.0.1",
    "192.168.0.1", "100.100.100.200", "evil.example@127.0.0.1", "127.0.0.1#@example.com", "①②⑦.⓪.⓪.①",
    "localtest.me", "example.com/a.png", "127.0.0.1%2f@example.com", "user:password@localhost/x.png",
)  # fmt: skip
_SCHEMES = ("http://", "https://", "HTTP://", "//", "ftp://", "gopher://")
VECTORS = [f"{scheme}{host}" for scheme in _SCHEMES for host in _HOSTS] + [
    "file:///etc/passwd", "file://localhost/etc/passwd", "/etc/passwd", "../../etc/passwd", "\\\\127.0.0.1\\a.png",
    "data:image/png,http://127.0.0.1/", "data:;url=http://127.0.0.1/", "s3://bucket/key", "jar:http://127.0.0.1!/a",
    "dict://127.0.0.1:11211/", "ldap://127.0.0.1/", "netdoc:///etc/passwd", "php://filter/resource=/etc/passwd",
    "expect://id", "url:http://127.0.0.1/", " http://127.0.0.1/", "http:127.0.0.1", "http:\\\\127.0.0.1",
]  # fmt: skip

# names that other services give to what they fetch, or read from their disk
_FETCHED = re.compile(
    r"ur[il]|href|link|webhook|callback|fetch|remote|download|path|file|dir|host|proxy|image|mask", re.I
)

# of ours that match: an image's bytes in base64, and what is done with them; what the answer is to hold; how many
# previews
_HARMLESS = {
    ("OpenAIBatchRequest", "input_file_id"),  # of files that were uploaded here
    ("/v1/files/{file_id}", "file_id"),
    ("/v1/files/{file_id}/content", "file_id"),
    ("A1111PngInfo", "image"),
    ("A1111ExtraImage", "image"),
    ("A1111ExtraImages", "imageList"),
    ("A1111TextToImage", "send_images"),
    ("A1111ImageToImage", "send_images"),
    ("A1111ImageToImage", "init_images"),
    ("A1111ImageToImage", "include_init_images"),
    ("A1111ImageToImage", "mask"),
    ("A1111ImageToImage", "mask_blur"),
    ("A1111ImageToImage", "inpainting_mask_invert"),
    ("GenerationRequest", "image"),
    ("GenerationRequest", "mask"),
    ("UpscaleRequest", "image"),
    ("VerifyRequest", "image"),
    ("UpscaleRequest", "webhook_url"),
    ("/sdapi/v1/progress", "skip_current_image"),
    ("OpenAIImageRequest", "partial_images"),
    ("OpenAIEditRequest", "partial_images"),
    ("OpenAIVariationRequest", "partial_images"),
    # the one address: refused unless its host is allowed, and never read from (tests/serve_app/webhooks)
    ("GenerationRequest", "webhook_url"),
    ("A1111ImageToImage", "mask_blur_x"),
    ("A1111ImageToImage", "mask_blur_y"),
    ("OpenAIInpaintingRequest", "partial_images"),
    ("OpenAIUpscaleRequest", "image"),
}

FIELDS = (
    "image",
    "images",
    "mask",
    "url",
    "image_url",
    "init_image",
    "webhook_url",
    "reference_images",
    "control_image",
)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Whatever anybody wants to connect to, or to find the address of."""
    wanted: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        wanted.append(arguments)
        raise ConnectionRefusedError

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, refuse)
    yield wanted
    assert wanted == []


def fields_of(schema: Any) -> Iterator[str]:
    """The names of all properties in a schema."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for value in schema.values():
            yield from fields_of(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from fields_of(value)


async def test_no_request_has_a_field_for_an_address(running: Front) -> None:
    document = (await running.http.get("/openapi.json")).json()
    schemas, walked, found = document["components"]["schemas"], set(), set()
    for path, calls in document["paths"].items():
        for method, call in calls.items():
            found |= {(path, one["name"]) for one in call.get("parameters", []) if _FETCHED.search(one["name"])}
            kinds = call.get("requestBody", {}).get("content", {})
            known = {"application/json", "multipart/form-data", "image/png", "image/jpeg", "image/webp"}
            if path.startswith("/admin/weights/"):
                known.add("application/octet-stream")  # a file's bytes
            assert kinds.keys() <= known, (method, path)
            for kind in kinds.values():
                for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(kind)):
                    walked.add(name)
                    found |= {(name, field) for field in fields_of(schemas[name]) if _FETCHED.search(field)}
                files = {name for name in fields_of(kind["schema"]) if _FETCHED.search(name)}
                assert files <= {"image", "mask", "mask_image", "file"}, (method, path)  # their bytes
    assert len(walked) >= 13
    assert found == _HARMLESS


async def test_an_address_is_no_image(running: Front, opened: list[Any]) -> None:
    assert len(VECTORS) >= 100
    for vector in VECTORS:
        response = await running.http.post("/sdapi/v1/png-info", json={"image": vector})
        assert (response.status_code, response.json()["body"]) == (422, "image"), vector


async def test_an_address_is_no_image_to_begin_with(running: Front, opened: list[Any]) -> None:
    for number, vector in enumerate(VECTORS):
        path, body = (
            ("/generate", {"prompt": "x", "image": vector}),
            ("/sdapi/v1/img2img", {"prompt": "x", "init_images": [vector]}),
            ("/predict", {"inputs": vector, "parameters": {"prompt": "x"}}),
            ("/upscale", {"image": vector}),
        )[number % 4]
        response = await running.http.post(path, json=body)
        assert response.status_code == 422, (path, vector)


@pytest.mark.parametrize("field", FIELDS)
async def test_an_address_in_a_field_of_others_is_refused(running: Front, opened: list[Any], field: str) -> None:
    for number, vector in enumerate(VECTORS):
        value = vector if number % 2 else [{"image_url": {"url": vector}}]
        for path, body, status in (
            ("/generate", {"prompt": "x", field: value}, 422),
            ("/v1/images/generations", {"prompt": "x", field: value}, 400),
            ("/predict", {"inputs": "x", "parameters": {field: value}}, 422),
        )[number % 3 :: 3]:
            response = await running.http.post(path, json=body)
            assert response.status_code == status, (path, vector)


async def test_an_address_is_no_model(running: Front, opened: list[Any]) -> None:
    for number, vector in enumerate(VECTORS):
        path, body, status = (
            ("/generate", {"prompt": "x", "model": vector}, 422),
            ("/v1/images/generations", {"prompt": "x", "model": vector}, 404),
            ("/sdapi/v1/txt2img", {"prompt": "x", "override_settings": {"sd_model_checkpoint": vector}}, 422),
            ("/sdapi/v1/options", {"sd_model_checkpoint": vector}, 422),
            ("/predict", {"inputs": "x", "parameters": {"model": vector}}, 422),
        )[number % 5]
        response = await running.http.post(path, json=body)
        assert response.status_code == status, (path, vector)


async def test_what_a1111_s_clients_send_along_is_ignored(running: Front, opened: list[Any]) -> None:
    """Unknown keys are, there; the picture is drawn from the prompt alone."""
    vector = "http://127.0.0.1:8000/x.png"
    body = {"prompt": vector, "seed": 2, "steps": 10, **dict.fromkeys((*FIELDS, "init_images"), vector)}
    response = await running.http.post("/sdapi/v1/txt2img", json={**body, "width": 128, "height": 128})
    assert response.status_code == 200
    assert "root:" not in response.text
