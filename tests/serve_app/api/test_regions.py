"""A request with regions, from its body to what the encoder and its lanes get; what is refused."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save_file

from deployments.engine.prompts.syntax import Lora
from deployments.engine.types import DenoiseRequest
from serve_app.config.settings import Settings
from serve_app.planning.plan import plan_generation
from serve_app.schemas.resolved import ResolvedGeneration
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
    assert first == {"prompt": "a green star", "box": RIGHT, "weight": 1.0, "loras": [], "mask_sha256": None}
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


@pytest.fixture
async def adapted(raw_settings: dict[str, Any], stages: Stages, tmp_path: Path) -> AsyncIterator[Front]:
    """With a folder of LoRAs."""
    folder = tmp_path / "loras"
    folder.mkdir()
    matrices = {f"lora_unet_a.lora_{way}.weight": np.ones((2, 2), np.float32) for way in ("down", "up")}
    for name in ("night", "ink", "chalk"):
        save_file(matrices, folder / f"{name}.safetensors")
    raw_settings["loras"] = {"folder": str(folder)}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        yield one


async def test_loras_of_its_own_are_besides_the_image_s_or_in_their_place(adapted: Front, stages: Stages) -> None:
    left = {"x": 0.0, "y": 0.0, "width": 0.5, "height": 1.0}
    regions = [
        {"prompt": "a star <lora:ink:0.5>", "box": RIGHT, "loras": [{"name": "chalk", "weight": 1.5}]},
        {"prompt": "a ring", "box": left, "loras": [{"name": "night", "weight": 0.0}]},
        {"prompt": "a heart <lora:night:0.75:0.25>", "box": left},
        {"prompt": "a cross", "box": left},
    ]
    fields = {**SMALL, "loras": [{"name": "night", "weight": 1.0}], "regions": regions}
    (lane,) = await lanes_of(stages, await adapted.generate(**fields))
    night = Lora("night", 1.0)
    assert lane.loras == (night,)
    star, ring, heart, cross = (region.loras for region in lane.regions)
    assert star == (night, Lora("chalk", 1.5), Lora("ink", 0.5))
    assert (ring, heart, cross) == ((), (Lora("night", 0.25),), (night,))
    job = await adapted.newest()
    plan = plan_generation(ResolvedGeneration.model_validate(job.request), adapted.service.settings)
    assert plan.encoding.loras == (night,)
    assert plan.encoding.region_loras == (star, (), (Lora("night", 0.75),), (night,))
    manifest = job.result["images"][0]["manifest"]  # type: ignore[index]
    assert [one["name"] for one in manifest["loras"]] == ["night"]
    named = [[(one["name"], one["weight"], one["hash"]) for one in region["loras"]] for region in manifest["regions"]]
    hashes = {name: digest for of_region in named for name, _, digest in of_region}
    assert hashes.keys() == {"night", "ink", "chalk"}
    assert [[one[:2] for one in of_region] for of_region in named] == [
        [("chalk", 1.5), ("ink", 0.5)],
        [("night", 0.0)],
        [("night", 0.25)],
        [],
    ]


async def test_which_passes_have_the_loras_of_regions(adapted: Front, stages: Stages) -> None:
    region = {"prompt": "a star", "box": RIGHT, "loras": [{"name": "ink"}]}
    ink = Lora("ink", 1.0)
    hires = {"scale": 2.0, "prompt": "x <lora:chalk:2>"}
    by_another = {"scale": 2.0, "model": "demo-sdxl", "upscaler": "lanczos"}
    answer = await adapted.generate(**SMALL, regions=[region], loras=[{"name": "night"}], hires=hires)
    first, second = await lanes_of(stages, answer)
    assert first.regions[0].loras == (Lora("night", 1.0), ink)
    assert second.regions[0].loras == (Lora("night", 1.0), Lora("chalk", 2.0), ink)
    answer = await adapted.generate(**SMALL, regions=[region], hires=by_another)
    assert [one.regions[0].loras for one in await lanes_of(stages, answer)] == [(ink,)]
    (second,) = await lanes_of(stages, answer, "sdxl_base")
    assert second.regions[0].loras is None
    size = {"width": SIDE, "height": SIDE, "steps": 10, "seed": 2, "model": "demo-sdxl"}
    answer = await adapted.generate(**size, regions=[region])
    (base,) = await lanes_of(stages, answer, "sdxl_base")
    (refining,) = await lanes_of(stages, answer, "sdxl_refiner")
    assert (base.regions[0].loras, refining.regions[0].loras) == ((ink,), None)


@pytest.mark.parametrize(
    ("region", "field", "message"),
    [
        ({"loras": [{"name": "none"}]}, "regions.0.loras", "no LoRA named 'none'"),
        ({"prompt": "y <lora:none>"}, "regions.0.loras", "no LoRA named 'none'"),
        ({"loras": [{"name": "../loras/ink"}]}, "regions.0.loras", "no LoRA named"),
        ({"loras": [{"name": "ink"}, {"name": "ink"}]}, "regions.0.loras.1.name", "names 'ink' twice"),
        ({"loras": [{"name": "ink", "weight": 99}]}, "regions.0.loras.0.weight", "less than or equal to"),
        ({"loras": "ink"}, "regions.0.loras", "expected a JSON array"),
        ({"loras": [{"name": f"{number}"} for number in range(9)]}, "regions.0.loras", "9 LoRAs of regions"),
        ({"prompt": "y <lora:ink:6><lora:ink:6>"}, "regions.0.prompt", "a weight of 12 in all"),
    ],
)
async def test_loras_that_are_refused(adapted: Front, region: Any, field: str, message: str) -> None:
    body = {"prompt": "x", **SMALL, "regions": [{"prompt": "y", "box": RIGHT, **region}]}
    answer = await adapted.http.post("/generate", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["field"]) == (422, field), answer.text
    assert message in error["message"]


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
