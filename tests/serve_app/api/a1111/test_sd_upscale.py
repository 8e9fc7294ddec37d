"""A1111's script "SD upscale": tiles of an enlarged picture, each a job, and the picture that they make together."""

import asyncio
import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from serve_app.api.a1111.sd_upscale import TileGrid
from serve_app.planning.sizes import Size
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, until
from tests.serve_app.images.pictures import gradient, received, sent

SCRIPT: dict[str, Any] = {
    "prompt": "x",
    "init_images": [sent(gradient(128, 192))],
    "denoising_strength": 0.5,
    "seed": 2,
    "width": 128,
    "height": 128,
    "script_name": "SD upscale",
    "script_args": ["", 64, "Lanczos", 2.0],
}


# A1111's split_grid and combine_grid
def test_tiles_cover_a_picture_and_make_it_again() -> None:
    picture = gradient(256, 384)
    grid = TileGrid.of(Size(256, 384), Size(128, 128), 64)
    assert grid.corners == [(x, y) for y in (0, 64, 128, 192, 256) for x in (0, 64, 128)]
    tiles = [received(base64.b64decode(part)) for part in grid.parts(picture)]
    assert (tiles[4] == picture[64:192, 64:192]).all()
    assert (grid.combined(tiles) == picture).all()
    assert TileGrid.of(Size(64, 64), Size(512, 512), 32).corners == [(0, 0)]
    uneven = TileGrid.of(Size(200, 128), Size(128, 128), 32)
    assert uneven.corners == [(0, 0), (72, 0)]


def test_a_tile_fades_in_over_the_one_before() -> None:
    grid = TileGrid.of(Size(192, 128), Size(128, 128), 64)
    black, white = np.zeros((128, 128, 3), np.uint8), np.full((128, 128, 3), 255, np.uint8)
    row = grid.combined([black, white])[0, :, 0].astype(int)
    assert (row[:65] == 0).all()
    assert (np.abs(np.diff(row[64:128]) - 4) <= 1).all()
    assert (row[128:] == 255).all()


async def test_each_tile_is_drawn_over(http: httpx.AsyncClient, running: Front, stages: Stages) -> None:
    answer = await http.post("/sdapi/v1/img2img", json={**SCRIPT, "seed": 2, "script_args": ["", 64, 1, 2.0]})
    assert answer.status_code in (200, 422)  # every other seed is withheld by the tests' classifier
    plain = {**SCRIPT, "script_args": ["", 0, "None", 2.0], "width": 512, "height": 512}
    answer = await http.post("/sdapi/v1/img2img", json=plain)
    assert answer.status_code == 200, answer.text
    [image] = answer.json()["images"]
    assert received(base64.b64decode(image)).shape == (192, 128, 3)
    lane = (await stages.denoisers["sd15"].lanes_asked.remote())[-1]
    assert (lane.image == gradient(128, 192)).all()
    larger = {**SCRIPT, "script_args": ["", 8, "Lanczos", 2.0], "width": 256, "height": 384}
    answer = await http.post("/sdapi/v1/img2img", json=larger)
    [image] = answer.json()["images"]
    assert received(base64.b64decode(image)).shape == (384, 256, 3)
    lane = (await stages.denoisers["sd15"].lanes_asked.remote())[-1]
    wanted = Image.fromarray(gradient(128, 192)).resize((256, 384), Image.Resampling.LANCZOS)
    assert (lane.image == np.asarray(wanted)).all()
    assert len(json.loads(answer.json()["info"])["infotexts"]) == 1


async def test_interrupt_ends_all_tiles(http: httpx.AsyncClient, running: Front) -> None:
    two = {**SCRIPT, "prompt": "endless", "width": 256, "height": 256}
    asking = asyncio.create_task(http.post("/sdapi/v1/img2img", json=two))
    await until(lambda: running.service.runner.depth() == (0, 2))
    await http.post("/sdapi/v1/interrupt")
    answer = await asking
    assert (answer.status_code, answer.json()["images"]) == (200, [])
    await until(lambda: running.service.runner.depth() == (0, 0))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"script_args": ["", 64, "my own", 2]}, "script_args"),
        ({"script_args": ["", 128, "Lanczos", 2]}, "script_args"),
        ({"script_args": ["", -1, "Lanczos", 2]}, "script_args"),
        ({"script_args": ["", 120, "Lanczos", 8]}, "script_args"),
        ({"batch_size": 2}, "batch_size"),
        ({"init_images": []}, "init_images"),
        ({"init_images": ["x"]}, "init_images"),
    ],
)
async def test_what_cannot_be_done_is_refused_by_name(
    http: httpx.AsyncClient, fields: dict[str, Any], named: str
) -> None:
    answer = await http.post("/sdapi/v1/img2img", json={**SCRIPT, **fields})
    assert (answer.status_code, answer.json()["body"]) == (422, named), answer.text
