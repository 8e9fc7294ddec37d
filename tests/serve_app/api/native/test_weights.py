"""Files of weights over HTTP: uploaded as they are, named by requests of any router at once, refused with a reason."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import save

from serve_app.auth.key_file import Scope
from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.cli.command_line import darkroom_beside, document
from tests.serve_app.front import Front, front
from tests.serve_app.keyed import GENERATE_READ, bearer, with_keys
from tests.serve_app.registry.test_weight_files import controlnet, lora, on_disk

BYTES = {"content-type": "application/octet-stream"}


@pytest.fixture
def weights(raw_settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Settings with folders."""
    for name in ("loras", "controlnets"):
        (tmp_path / name).mkdir()
        raw_settings[name] = {"folder": str(tmp_path / name)}
    (tmp_path / "embeddings").mkdir()
    raw_settings["stages"] = {"text_encoder": {"embeddings": str(tmp_path / "embeddings")}}
    raw_settings["registry"] = {"max_upload_bytes": 100_000, "min_free_bytes": 0}
    return raw_settings


@pytest.fixture
async def running(weights: dict[str, Any], stages: Stages) -> AsyncIterator[Front]:
    async with front(Settings.model_validate(weights), stages) as one:
        yield one


async def test_a_lora_is_used_by_every_router_as_soon_as_it_is_there(
    http: httpx.AsyncClient, running: Front, stages: Stages
) -> None:
    content = lora()
    answer = await http.put("/admin/weights/loras/night", content=content, headers=BYTES)
    assert answer.status_code == 200, answer.text
    file = answer.json()
    assert (file["name"], file["bytes"]) == ("night", len(content))
    async with front(running.service.settings, stages, owner="router-2") as other:
        drawn = await other.generate("a red circle <lora:night:0.5>", seed=2)
        assert drawn.status_code == 200, drawn.text
        assert [lora["name"] for lora in (await other.newest()).request["loras"]] == ["night"]
        assert (await other.http.get("/models")).json()["loras"] == ["night"]
        assert [one["name"] for one in (await other.http.get("/sdapi/v1/loras")).json()] == ["night"]
        listed = (await other.http.get("/admin/weights")).json()["folders"]
        others = ("controlnets", "ip_adapters", "vaes", "upscalers", "detectors", "embeddings")
        assert listed == {"loras": [file], **{folder: [] for folder in others}}
        left = (await other.http.delete("/admin/weights/loras/night")).json()["folders"]
        assert left["loras"] == []
    refused = await running.generate("a red circle <lora:night:0.5>", seed=2)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "lora_refused")
    changes = (await http.get("/admin/changes")).json()["changes"]
    assert [(change["kind"], change["name"]) for change in changes] == [("file", "loras/night")] * 2


async def test_a_textual_inversion_is_uploaded_and_removed(
    http: httpx.AsyncClient, running: Front, stages: Stages
) -> None:
    content = save({"emb_params": torch.ones(2, 768, dtype=torch.float32)})
    answer = await http.put("/admin/weights/embeddings/style", content=content, headers=BYTES)
    assert answer.status_code == 200, answer.text
    async with front(running.service.settings, stages, owner="router-2") as other:
        assert (await other.http.get("/models")).json()["embeddings"] == ["style"]
        loaded = (await other.http.get("/sdapi/v1/embeddings")).json()["loaded"]
        assert {name: one["vectors"] for name, one in loaded.items()} == {"style": 2}
    assert (await http.delete("/admin/weights/embeddings/style")).json()["folders"]["embeddings"] == []
    assert (await http.get("/models")).json()["embeddings"] == []


@pytest.mark.parametrize(
    ("path", "content", "status", "code", "message"),
    [
        ("loras/night", b"PK\x03\x04" + bytes(99), 422, "lora_refused", "a pickle in spite of its name"),
        ("loras/night", lora()[:-4], 422, "lora_refused", "cut short"),
        ("loras/night", controlnet(), 422, "lora_refused", "LoRA 'night'"),
        ("controlnets/edges", lora(), 422, "controlnet_refused", "expected the tensors of a ControlNet"),
        ("loras/%2E%2E%2Fnight", lora(), 404, "unknown_route", "no route"),
        ("loras/a%3Ab", lora(), 422, "lora_refused", "has a name that requests can't say"),
        ("models/night", lora(), 404, "unknown_entry", "no folder 'models'"),
        ("upscalers/night", lora(), 404, "unknown_entry", "the settings name no folder of upscalers"),
        ("embeddings/style", lora(), 422, "invalid_request", "embedding 'style'"),
        ("embeddings/style", save({"a": torch.full((2, 9), torch.nan)}), 422, "invalid_request", "isn't finite"),
        ("embeddings/style(1)", lora(), 422, "invalid_request", "has a name that requests can't say"),
        ("loras/night", bytes(100_001), 413, "body_too_large", ""),
    ],
)
async def test_what_is_refused(
    http: httpx.AsyncClient, tmp_path: Path, path: str, content: bytes, status: int, code: str, message: str
) -> None:
    answer = await http.put(f"/admin/weights/{path}", content=content, headers=BYTES)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code), error
    assert message in error["message"]
    assert str(tmp_path) not in answer.text
    assert on_disk(tmp_path / "loras") == on_disk(tmp_path / "controlnets") == on_disk(tmp_path / "embeddings") == {}


async def test_the_length_must_be_said(http: httpx.AsyncClient) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield lora()

    answer = await http.put("/admin/weights/loras/night", content=parts(), headers=BYTES)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unreadable_request")


async def test_another_file_takes_a_name_only_where_it_is_meant(http: httpx.AsyncClient) -> None:
    for content, query, status in ((lora(0), "", 200), (lora(1), "", 422), (lora(1), "?replace=true", 200)):
        answer = await http.put(f"/admin/weights/loras/night{query}", content=content, headers=BYTES)
        assert answer.status_code == status, answer.text


async def test_only_an_admin_may(weights: dict[str, Any], stages: Stages, tmp_path: Path) -> None:
    keys = with_keys(weights, tmp_path / "keys", alice=GENERATE_READ, ops=frozenset({Scope.ADMIN}))
    async with front(Settings.model_validate(weights), stages) as one:
        for owner, status in (("alice", 403), ("ops", 200)):
            for method in ("PUT", "GET", "DELETE"):
                path = "/admin/weights" if method == "GET" else "/admin/weights/loras/night"
                content = lora() if method == "PUT" else None
                answer = await one.http.request(method, path, content=content, headers=bearer(keys[owner]) | BYTES)
                assert answer.status_code == status, answer.text


async def test_from_the_command_line(url: str, tmp_path: Path) -> None:
    file = tmp_path / "night.safetensors"
    file.write_bytes(lora())
    result = await darkroom_beside("models", "upload", "loras", file, "--name", "my night", "--url", url)
    assert result.exit_code == 0, result.output
    listed = document(await darkroom_beside("models", "files", "--url", url, "--json"))["folders"]["loras"]
    assert [(one["name"], one["bytes"]) for one in listed] == [("my night", len(lora()))]
    table = (await darkroom_beside("models", "files", "--url", url)).stdout
    assert listed[0]["sha256"] in table
    file.write_bytes(lora(1))
    again = ("models", "upload", "loras", file, "--name", "my night", "--url", url)
    result = await darkroom_beside(*again)
    assert (result.exit_code, "is there already" in result.stderr) == (1, True)
    assert (await darkroom_beside(*again, "--replace")).exit_code == 0
    assert (await darkroom_beside("models", "remove", "loras", "my night", "--url", url)).exit_code == 0
    result = await darkroom_beside("models", "remove", "loras", "my night", "--url", url)
    assert (result.exit_code, "404: no LoRA named 'my night'" in result.stderr) == (1, True)
