"""A model is added, drawn with, named by an alias and removed while others' images are drawn, which notice nothing."""

import io
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
from PIL import Image
from ray import serve

from deployments.engine.checkpoints.files import resolve_source
from tests.e2e.service import TINY_DEFAULTS, TINY_LIMITS, Service
from tests.serve_app.images.manifest_files import read_manifest
from tests.serve_app.images.pictures import sent, square
from tests.tiny_checkpoints import write_tiny_sd15

pytestmark = pytest.mark.ray

LOAD = 8
MODEL = {"defaults": TINY_DEFAULTS, "limits": TINY_LIMITS}


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=120) as client:
        yield client


def changed(client: httpx.Client, method: str, path: str, body: Any = None) -> dict[str, Any]:
    answer = client.request(method, path, json=body)
    assert answer.is_success, answer.text
    models: dict[str, Any] = {model["name"]: model for model in answer.json()["models"]}
    return models


def become(client: httpx.Client, name: str, state: str | None) -> None:
    until = time.monotonic() + 120
    while (model := changed(client, "GET", "/admin/models").get(name)) and model["added"]["state"] != state:
        assert model["added"]["state"] != "failed", model
        assert time.monotonic() < until
        time.sleep(0.2)
    assert (model is None) is (state is None)


def drawn(client: httpx.Client, model: str, steps: int = 4, **fields: Any) -> dict[str, Any]:
    """A job that is done; `reproducible`, so that its bits tell whether anything has changed it."""
    body = {"prompt": "a red circle", "model": model, "seed": 4, "steps": steps, "reproducible": True, **fields}
    answer = client.post("/generate", json=body, headers={"prefer": "wait=120"})
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    assert job["status"] == "complete", job
    return job


@contextmanager
def drawing(client: httpx.Client, threads: ThreadPoolExecutor) -> Iterator[list[dict[str, Any]]]:
    """As many as LOAD others ask for one image after the other; all of them, once the block has ended."""
    over = Event()
    jobs: list[dict[str, Any]] = []

    def one_after_the_other() -> None:
        while not over.is_set():
            jobs.append(drawn(client, "tiny-sd15", 40))

    others = [threads.submit(one_after_the_other) for _ in range(LOAD)]
    try:
        yield jobs
    finally:
        over.set()
        for other in others:
            other.result()


def pixels(client: httpx.Client, job: dict[str, Any]) -> bytes:
    """Of its first image, without the manifest, which tells the time."""
    return Image.open(io.BytesIO(client.get(job["images"][0]["url"]).content)).tobytes()


def forgotten(service: Service) -> None:
    """Wait until no stage has an added checkpoint in memory."""
    until = time.monotonic() + 60
    for stage in ("TextEncoder", "SD15"):
        handle = serve.get_deployment_handle(stage, service.app)
        while any("@" in name for name in handle.describe.remote().result().checkpoints):
            assert time.monotonic() < until
            time.sleep(0.1)


def test_under_load(service: Service, client: httpx.Client) -> None:
    folder = Path(service.settings.registry.folders[0])
    write_tiny_sd15(folder / "new", seed=23)
    expected = pixels(client, drawn(client, "tiny-sd15", 40))
    with ThreadPoolExecutor(LOAD + 2) as others, drawing(client, others) as jobs:
        models = changed(client, "POST", "/admin/models", {"name": "new", "source": "new", "family": "sd15", **MODEL})
        assert models["new"]["serving"] is False
        become(client, "new", "ready")
        of_new = drawn(client, "new")
        assert read_manifest(client.get(of_new["images"][0]["url"]).content).model.name == "new"
        client.put("/admin/aliases/realistic", json={"model": "new"}).raise_for_status()
        by_alias = drawn(client, "realistic")
        client.delete("/admin/aliases/realistic").raise_for_status()
        begun = others.submit(drawn, client, "new", 50)
        while not (begun.done() or changed(client, "GET", "/admin/models")["new"]["unfinished"]):
            time.sleep(0.02)
        changed(client, "DELETE", "/admin/models/new")
        become(client, "new", None)
        assert begun.result()["status"] == "complete"
    assert len(jobs) > LOAD
    assert {pixels(client, job) for job in jobs} == {expected}
    assert pixels(client, by_alias) == pixels(client, of_new) != expected
    assert client.post("/generate", json={"prompt": "x", "model": "new"}).status_code == 422
    forgotten(service)


def test_an_added_model_is_steered_by_a_controlnet(service: Service, client: httpx.Client) -> None:
    """The demo's own checkpoint under another name: the same bits as of the one in the configuration file."""
    folder = Path(service.settings.registry.folders[0])
    shutil.copytree(resolve_source("package:demo_models/demo-sd15"), folder / "shapes")
    changed(client, "POST", "/admin/models", {"name": "shapes", "source": "shapes", "family": "sd15", **MODEL})
    become(client, "shapes", "ready")
    edges = {"model": "demo-edges", "image": sent(square(64, 64, 16, 16, 32)), "preprocessor": "canny"}
    plain = drawn(client, "shapes")
    steered, of_the_file = (drawn(client, model, controlnets=[edges]) for model in ("shapes", "demo-sd15"))
    assert [one.name for one in read_manifest(client.get(steered["images"][0]["url"]).content).controlnets] == [
        "demo-edges"
    ]
    assert pixels(client, plain) != pixels(client, steered) == pixels(client, of_the_file)
    changed(client, "DELETE", "/admin/models/shapes")
    become(client, "shapes", None)
    forgotten(service)


def test_a_model_that_cannot_be_loaded_is_not_served(service: Service, client: httpx.Client) -> None:
    folder = Path(service.settings.registry.folders[0])
    source = write_tiny_sd15(folder / "broken", seed=24)
    (source / "unet" / "diffusion_pytorch_model.safetensors").rename(source / "old.safetensors")
    (source / "vae" / "diffusion_pytorch_model.safetensors").rename(
        source / "unet" / "diffusion_pytorch_model.safetensors"
    )
    (source / "old.safetensors").rename(source / "vae" / "diffusion_pytorch_model.safetensors")
    changed(client, "POST", "/admin/models", {"name": "broken", "source": "broken", "family": "sd15", **MODEL})
    until = time.monotonic() + 120
    while (model := changed(client, "GET", "/admin/models")["broken"])["added"]["state"] == "adding":
        assert time.monotonic() < until
        time.sleep(0.2)
    assert model["added"]["state"] == "failed"
    assert str(source) in model["added"]["problem"]
    assert "broken" not in {one["name"] for one in client.get("/models").json()["models"]}
    changed(client, "DELETE", "/admin/models/broken")
    become(client, "broken", None)
    forgotten(service)
