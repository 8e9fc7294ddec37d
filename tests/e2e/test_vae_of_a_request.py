"""A VAE that a request names: the same bits as of a model that has it, in each pass; others notice nothing."""

import base64
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image

from serve_app.schemas.manifest import Manifest
from tests.e2e.service import Service
from tests.serve_app.images.manifest_files import read_manifest
from tests.serve_app.images.pictures import gradient, sent

pytestmark = pytest.mark.ray

MODEL, WITH_IT, VAE = "tiny-sd15", "tiny-sd15-soft", "soft"
DETAIL = {"detector": "everywhere", "max_count": 2, "strength": 0.5, "width": 64, "height": 64}
# the second pass of pixels and the details are encoded by the VAE, too
PASSES: dict[str, dict[str, Any]] = {
    "alone": {},
    "from an image": {"image": sent(gradient(64, 64)), "strength": 0.5},
    "hires": {"hires": {"scale": 2.0, "upscaler": "lanczos", "strength": 0.5}},
    "details": {"details": [DETAIL]},
    "all": {"hires": {"scale": 1.5, "upscaler": "lanczos", "strength": 0.5}, "details": [DETAIL]},
}


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=120) as client:
        yield client


def pixels(file: bytes) -> bytes:
    return Image.open(io.BytesIO(file)).tobytes()


def drawn(client: httpx.Client, **fields: Any) -> tuple[bytes, Manifest]:
    """The pixels and the manifest of an image whose bits are its own, whoever shares the device."""
    body = {"prompt": "a red circle", "seed": 4, "steps": 6, "reproducible": True, "safety": "flag", **fields}
    answer = client.post("/generate", json=body, headers={"prefer": "wait=100"})
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert job["status"] == "complete", job
    file = client.get(job["images"][0]["url"]).content
    manifest = read_manifest(file)
    assert manifest is not None
    return pixels(file), manifest


def test_the_bits_are_those_of_a_model_that_has_it_and_neighbours_keep_theirs(client: httpx.Client) -> None:
    expected = {name: drawn(client, model=WITH_IT, **fields)[0] for name, fields in PASSES.items()}
    plain = {name: drawn(client, model=MODEL, **fields)[0] for name, fields in PASSES.items()}
    with ThreadPoolExecutor(2 * len(PASSES)) as threads:
        others = {name: threads.submit(drawn, client, model=MODEL, **fields) for name, fields in PASSES.items()}
        named = {name: threads.submit(drawn, client, model=MODEL, vae=VAE, **fields) for name, fields in PASSES.items()}
    for name in PASSES:
        found, manifest = named[name].result()
        assert found == expected[name] != plain[name], name
        assert manifest.vae is not None
        assert (manifest.vae.name, len(manifest.vae.hash)) == (VAE, 64)
        found, manifest = others[name].result()
        assert (found, manifest.vae) == (plain[name], None), name
    details = named["details"].result()[1].details
    assert [len(one.parts) for one in details] == [2]  # they were drawn over


def test_automatic1111s_sd_vae(client: httpx.Client) -> None:
    tab = {"ad_model": "everywhere", "ad_mask_k": 1, "ad_denoising_strength": 0.5}
    of_all_passes = {
        "enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Lanczos", "denoising_strength": 0.5,
        "alwayson_scripts": {"ADetailer": {"args": [True, False, tab]}},
    }  # fmt: skip
    for fields in ({}, of_all_passes):
        files, infos = {}, {}
        for model, vae in ((MODEL, "Automatic"), (MODEL, f"{VAE}.safetensors"), (WITH_IT, "Automatic")):
            override = {"sd_model_checkpoint": model, "sd_vae": vae}
            body = {"prompt": "a circle", "seed": 4, "steps": 6, "width": 64, "height": 64, **fields}
            answer = client.post("/sdapi/v1/txt2img", json={**body, "override_settings": override})
            assert answer.status_code == 200, answer.text
            files[model, vae], infos[model, vae] = answer.json()["images"][0], json.loads(answer.json()["info"])
        own, named, with_it = (pixels(base64.b64decode(file)) for file in files.values())
        assert named == with_it != own
        assert [info["sd_vae_name"] for info in infos.values()] == [None, VAE, None]
        assert [info["warnings"] for info in infos.values()] == [[]] * 3
