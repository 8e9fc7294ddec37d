"""A request with regions, from its body to what the encoder and its lanes get; what is refused."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from deployments.engine.types import DenoiseRequest
from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front, until
from tests.serve_app.images.pictures import gradient, sent, square

SIDE = 128
SMALL = {"width": SIDE, "height": SIDE, "steps": 10, "seed": 2}
MASK = square(SIDE, SIDE, 32, 32, 64)
RIGHT = {"x": 0.5, "y": 0.0, "width": 0.5, "height": 1.0}
REGIONS: list[dict[str, Any]] = [
    {"prompt": "a green star", "box": RIGHT},
    {"prompt": "a blue ring", "mask": sent(MASK), "weight": 2.0},
]


@pytest.fixture
async def running(raw_settings: dict[str, Any], stages: Stages) -> AsyncIterator[Front]:
    raw_settings["limits"] = {"max_image_pixels": 1 << 18, "max_image_body_bytes": 2 << 20}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        yield one


def kept_in(folder: Path) -> list[Path]:
    return list(folder.rglob("control-*.png"))


async def lanes_of(stages: Stages, answer: httpx.Response, stage: str = "sd15") -> list[DenoiseRequest]:
    assert answer.json()["status"] == "complete", answer.text
    lanes: list[DenoiseRequest] = await stages.denoisers[stage].lanes_asked.remote()
    return [lane for lane in lanes if lane.lane_id.startswith(answer.json()["job_id"])]


async def test_what_a_lane_gets(running: Front, stages: Stages) -> None:
    answer = await running.generate(**SMALL, regions=REGIONS, base_weight=0.25)
    (lane,) = await lanes_of(stages, answer)
    star, ring = lane.regions
    assert (star.mask[:, : SIDE // 2] == 0).all()
    assert (star.mask[:, SIDE // 2 :] == 255).all()
    assert (ring.mask == MASK).all()
    assert (star.weight, ring.weight, lane.base_weight, lane.composed_prompts) == (1.0, 2.0, 0.25, 3)
    job = await running.newest()
    manifest = job.result["images"][0]["manifest"]  # type: ignore[index]
    first, second = manifest["regions"]
    assert first == {"prompt": "a green star", "box": RIGHT, "weight": 1.0, "mask_sha256": None}
    assert (second["prompt"], second["box"], second["weight"]) == ("a blue ring", None, 2.0)
    assert len(second["mask_sha256"]) == 64
    assert manifest["base_weight"] == 0.25


async def test_a_second_pass_and_a_refiner_have_them_too(running: Front, stages: Stages) -> None:
    first, second = await lanes_of(stages, await running.generate(**SMALL, regions=REGIONS, hires={"scale": 2.0}))
    for small, large in zip(first.regions, second.regions, strict=True):
        assert (large.mask == small.mask.repeat(2, axis=0).repeat(2, axis=1)).all()
    size = {"width": SIDE, "height": SIDE, "steps": 10, "seed": 2, "model": "demo-sdxl"}
    answer = await running.generate(**size, regions=REGIONS)
    (base,) = await lanes_of(stages, answer, "sdxl_base")
    (refining,) = await lanes_of(stages, answer, "sdxl_refiner")
    assert [(one.mask == other.mask).all() for one, other in zip(base.regions, refining.regions, strict=True)] == [
        True
    ] * 2
    assert (refining.composed_prompts, refining.base_weight) == (3, base.base_weight)


async def test_with_an_image(running: Front, stages: Stages) -> None:
    image = {"image": sent(gradient(SIDE, SIDE)), "mask": sent(MASK), "strength": 0.5}
    (lane,) = await lanes_of(stages, await running.generate(**SMALL, regions=REGIONS, **image))
    assert lane.image is not None
    assert np.array_equal(lane.regions[1].mask, MASK)


async def test_its_files_go_at_the_job_s_end(running: Front, tmp_path: Path) -> None:
    accepted = await running.generate("endless", wait=None, **SMALL, regions=REGIONS)
    assert len(kept_in(tmp_path)) == 1
    await running.http.delete(f"/jobs/{accepted.json()['job_id']}")
    await until(lambda: not kept_in(tmp_path))


@pytest.mark.parametrize(
    ("region", "field", "message"),
    [
        ({"mask": "https://example.com/a.png"}, "regions.0.mask", "nothing is fetched"),
        ({"mask": "bm90aGluZw=="}, "regions.0.mask", "isn't a readable PNG"),
        ({"mask": sent(np.zeros((1024, 1024), np.uint8))}, "regions.0.mask", "1048576 pixels, at most 262144"),
        ({"mask": sent(np.zeros((64, 64), np.uint8))}, "regions.0.mask", "has no white area"),
        ({"box": {**RIGHT, "x": 0.6}}, "regions.0.box", "beyond the image"),
        ({}, "regions.0", "neither box nor mask"),
        ({"box": RIGHT, "prompt": "word " * 900}, "regions.0.prompt", "characters"),
    ],
)
async def test_what_is_refused(running: Front, region: Any, field: str, message: str, tmp_path: Path) -> None:
    body = {"prompt": "x", **SMALL, "regions": [{"prompt": "y", **region}]}
    answer = await running.http.post("/generate", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (422, field), answer.text
    assert message in error["message"]
    assert not kept_in(tmp_path)


async def test_a_request_that_comes_again_is_known_by_its_regions(running: Front) -> None:
    headers = {"Idempotency-Key": "once"}
    body = {"prompt": "x", **SMALL, "regions": REGIONS}
    again = {**body, "regions": [REGIONS[0], {**REGIONS[1], "mask": f"data:image/png;base64,{REGIONS[1]['mask']}"}]}
    other = {**body, "regions": [REGIONS[0], {**REGIONS[1], "mask": sent(MASK[::-1, ::2])}]}
    fewer = {**body, "regions": REGIONS[:1]}
    answers = [await running.http.post("/generate", json=one, headers=headers) for one in (body, again, other, fewer)]
    assert answers[0].json()["job_id"] == answers[1].json()["job_id"]
    assert [answer.status_code for answer in answers[2:]] == [422, 422]
