"""The demo detector: what its network is taught, and what the packaged one finds."""

from __future__ import annotations

import random

import pytest
import torch
from diffusers import AutoencoderKL

from demo_models import DETECTORS, path
from demo_models.detecting import score_detector
from demo_models.detector import CELLS, CLASSES, NAME, NONE, SIDE, held_out_pictures, targets, training_pool
from demo_models.drawing import draw_boxed
from demo_models.scenes import Scene, SceneObject
from deployments.engine.detection.folder import DetectorFolder


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(path("demo-sd15") / "vae", dtype=torch.float32)


def test_a_shape_s_box_is_where_it_was_drawn() -> None:
    scene = Scene(
        "white", (SceneObject("square", "red", "small", "left"), SceneObject("circle", "blue", place="right"))
    )
    picture, boxes = draw_boxed(scene, 128, 256, random.Random(3))
    background = picture[0, 0]
    for left, top, right, bottom in boxes:
        inside = (picture[round(top) : round(bottom), round(left) : round(right)] != background).any(2)
        assert inside.any(0).all()
        assert inside.any(1).all()
        picture[int(top) : int(bottom + 1), int(left) : int(right + 1)] = background
    assert (picture == background).all()


def test_what_the_cells_should_tell() -> None:
    boxes = torch.tensor([[[64.0, 64.0, 128.0, 192.0], [0.0, 0.0, 0.0, 0.0]]])
    classes, edges, counts = targets(boxes, torch.tensor([[2, NONE]]))
    told = classes[0].nonzero().tolist()
    assert {cell[0] for cell in told} == {2}
    assert {(row, column) for _, row, column in told} == {(row, column) for row in range(14, 18) for column in (11, 12)}
    assert edges[0, :, 15, 11].tolist() == [3.5, 7.5, 4.5, 8.5]  # cells of 8 pixels
    assert counts[0, 0, 15, 11]
    assert not counts[0, 0, 15, 10]  # its rim
    assert counts[0, 0, 0, 0]


def test_each_picture_follows_from_its_number(vae: AutoencoderKL) -> None:
    pool, more = training_pool(vae, 3, seed=1), training_pool(vae, 4, seed=1)
    assert pool.pictures.shape == (3, 3, SIDE, SIDE)
    assert torch.equal(pool.pictures, more.pictures[:3])
    assert torch.equal(pool.boxes, more.boxes[:3])
    shown = pool.labels != NONE
    assert shown.any()
    assert (pool.boxes[shown][:, :2] < pool.boxes[shown][:, 2:]).all()
    assert CELLS * 8 == SIDE


def test_the_packaged_one_finds_what_it_has_never_seen(vae: AutoencoderKL) -> None:
    source = DetectorFolder(str(path(DETECTORS))).find(NAME)
    assert (source.classes, source.side) == (CLASSES, SIDE)
    assert source.file.stat().st_size < 2_000_000
    assert "apache-2.0" in (path(DETECTORS) / "README.md").read_text()
    score = score_detector(path(DETECTORS), NAME, held_out_pictures(vae, 60, "tested"))
    assert score.named >= 0.95 * score.shapes
    assert score.false <= 0.3 * 60  # a picture has 0.19 of them where a detail looks by itself
