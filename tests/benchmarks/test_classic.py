"""The baseline works as the tutorial says; its client waits for its images."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from benchmarks.classic import ClassicPipeline, GenerateBody, body_of, classic_app
from benchmarks.http_clients import ClassicClient, until_ready
from benchmarks.service_requests import ImageRequest

REQUEST = ImageRequest(
    prompt="a red circle", seed=7, steps=2, guidance_scale=5.0, width=64, height=64, sampler="dpmpp_2m"
)


@pytest.fixture
async def http(tiny_sd15: Path, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = classic_app(str(tiny_sd15), "dpmpp_2m", tmp_path)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        await until_ready(http, "/health", patience_s=60)
        yield http


async def test_images_come_out_and_equal_the_bare_calls(http: httpx.AsyncClient, tiny_sd15: Path) -> None:
    client = ClassicClient(http)
    asked = [REQUEST.model_copy(update={"seed": seed}) for seed in range(4)]
    answers = await asyncio.gather(*(client.generate(one) for one in asked))
    assert [answer.fate for answer in answers] == ["done"] * 4
    pipeline = ClassicPipeline(str(tiny_sd15), "dpmpp_2m")
    for request, answer in zip(asked, answers, strict=True):
        with Image.open(io.BytesIO(answer.image)) as image:
            assert image.tobytes() == pipeline.generate(body_of(request)).tobytes()


async def test_the_tutorials_shapes(http: httpx.AsyncClient) -> None:
    accepted = await http.post("/generate", json=body_of(REQUEST).model_dump())
    assert accepted.status_code == 202
    job_id = accepted.json()["job_id"]
    assert accepted.json() == {"job_id": job_id, "status": "queued"}
    assert (await http.get(f"/result/{job_id}")).json()["status"] in ("processing", "complete")
    assert (await http.get("/result/nobody")).status_code == 404
    assert (await http.get("/images/nobody")).status_code == 404
    assert (await http.post("/generate", json={"prompt": "x", "width": 65})).status_code == 422


async def test_a_failed_job_is_told(http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_self: ClassicPipeline, _body: GenerateBody) -> Image.Image:
        raise RuntimeError("no more paint")

    monkeypatch.setattr(ClassicPipeline, "generate", broken)
    answer = await ClassicClient(http).generate(REQUEST)
    assert answer.fate == "failed"
    assert "no more paint" in answer.reason
