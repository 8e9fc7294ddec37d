"""Textual inversions over HTTP: listed, with those that are skipped, and told again by the image."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from webuiapi import WebUIApi

from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.api.a1111.a1111_client import SMALL, call
from tests.serve_app.front import Front, front
from tests.serve_app.served import served


@pytest.fixture
async def running(raw_settings: dict[str, Any], stages: Stages, tmp_path: Path) -> AsyncIterator[Front]:
    folder = tmp_path / "embeddings"
    folder.mkdir()
    save_file({"emb_params": np.ones((2, 768), np.float32)}, folder / "style.safetensors")
    both = {name: np.ones((3, channels), np.float16) for name, channels in (("clip_l", 768), ("clip_g", 1280))}
    save_file(both, folder / "xl.safetensors")
    (folder / "old.pt").write_bytes(b"\x80\x02")
    raw_settings["stages"] = {"text_encoder": {"embeddings": str(folder)}}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        yield one


async def test_listed(running: Front) -> None:
    models = (await running.http.get("/models")).json()
    assert models["embeddings"] == ["style", "xl"]
    assert models["skipped"] == {
        "embeddings": {
            "old": "embedding 'old' is a .pt file: a pickle can run code when it is read; convert it to .safetensors"
        }
    }
    unknown = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None}
    async with served(running) as url:
        assert await call(url, WebUIApi.get_embeddings) == {
            "loaded": {
                "style": {**unknown, "shape": 768, "vectors": 2},
                "xl": {**unknown, "shape": 2048, "vectors": 3},
            },
            "skipped": {"old": {**unknown, "shape": 0, "vectors": 0}},
        }


async def test_told_again_by_the_image(running: Front) -> None:
    job = (await running.generate(prompt="a style circle", **SMALL)).json()
    [image] = job["images"]
    manifest = (await running.newest()).result["images"][0]["manifest"]
    assert manifest["embeddings"] == [{"name": "style", "hash": "5" * 64}]
    file = (await running.http.get(image["url"])).content
    told = (await running.http.post("/sdapi/v1/png-info", json={"image": base64.b64encode(file).decode()})).json()
    assert told["parameters"]["TI hashes"] == f"style: {'5' * 12}"
    other = (await running.generate(prompt="a circle", **SMALL)).json()
    assert other["status"] == "complete"
    assert (await running.newest()).result["images"][0]["manifest"]["embeddings"] == []
