"""The judge: agrees with drawings, and with no altered one."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import median_filter

from demo_models.captions import parse
from demo_models.drawing import STYLES, draw
from demo_models.scenes import COLORS, SHAPES, Scene, SceneObject, held_out_scenes
from demo_models.scoring import score_image


@pytest.mark.parametrize(("style", "most", "share"), [("plain", 3, 1.0), ("outline", 2, 0.98), ("stripes", 2, 0.97)])
def test_drawings_are_right(style: str, most: int, share: float) -> None:
    scenes = held_out_scenes(80, seed=3, most_objects=most)
    found = [score_image(draw(s, 256, 256, random.Random(i), style), s, style) for i, s in enumerate(scenes)]
    assert np.mean([score.right for score in found]) >= share
    assert np.mean([score.exact for score in found]) >= share


@pytest.mark.parametrize("size", [(128, 128), (192, 256), (256, 192), (320, 320)])
def test_drawings_are_right_at_every_size(size: tuple[int, int]) -> None:
    for number, scene in enumerate(held_out_scenes(20, seed=5)):
        assert score_image(draw(scene, *size, random.Random(number)), scene).exact


def _other(name: str, names: list[str]) -> str:
    return names[(names.index(name) + 4) % len(names)]


def test_altered_scenes_are_wrong() -> None:
    """Ask about another colour, shape, texture or background than the one drawn."""
    colors = list(COLORS)
    for number, scene in enumerate(held_out_scenes(25, seed=6)):
        picture = draw(scene, 256, 256, random.Random(number))
        first, *rest = scene.objects
        texture = "plain" if first.texture == "checkered" else "checkered"
        altered = [
            replace(first, color=_other(first.color, [c for c in colors if c != scene.background])),
            replace(first, shape=_other(first.shape, list(SHAPES))),
            replace(first, texture=texture),
        ]
        for item in altered:
            score = score_image(picture, Scene(scene.background, (item, *rest)))
            assert not score.right
            assert item.texture != first.texture or not score.named
        taken = {item.color for item in scene.objects} | {scene.background}
        free = next(color for color in colors if color not in taken)
        assert not score_image(picture, Scene(free, scene.objects)).right


def test_a_swapped_pair_a_missing_shape_and_one_too_many_are_wrong() -> None:
    pair = parse("a red circle on the left and a yellow square on the right, blue background")
    swapped = parse("a yellow square on the left and a red circle on the right, blue background")
    alone = parse("a red circle on the left, blue background")
    picture = draw(pair, 256, 256, random.Random(0))
    assert score_image(picture, pair).exact
    assert not score_image(picture, swapped).right
    assert not score_image(picture, alone).right
    assert not score_image(draw(alone, 256, 256, random.Random(0)), pair).right


@pytest.mark.parametrize("size", [(192, 256), (256, 256)])
@pytest.mark.parametrize("shape", SHAPES)
def test_blunt_corners_are_forgiven_and_halves_are_not(shape: str, size: tuple[int, int]) -> None:
    """What an autoencoder does to a small shape leaves it one; half of a shape is none."""
    scene = Scene(
        "white", (SceneObject(shape, "blue", "small", "left"), SceneObject("circle", "red", "small", "right"))
    )
    picture = draw(scene, *size, random.Random(0))
    rows, columns = np.nonzero((picture[:, : size[1] // 2] < 128).any(axis=2))
    box = np.s_[rows.min() - 4 : rows.max() + 5, columns.min() - 4 : columns.max() + 5]
    blunt = picture.copy()
    blunt[box] = median_filter(blunt[box], size=(7, 7, 1), mode="nearest")
    assert (blunt != picture).any()
    assert score_image(blunt, scene).right
    half = picture.copy()
    half[:, columns.min() : (columns.min() + columns.max()) // 2] = picture[0, 0]
    assert not score_image(half, scene).right


@pytest.mark.parametrize("style", STYLES[1:])
def test_a_style_is_told_from_the_plain_one(style: str) -> None:
    scene = parse("a large red circle and a large yellow square on a blue background")
    plain, styled = (draw(scene, 256, 256, random.Random(0), name) for name in ("plain", style))
    assert score_image(styled, scene, style).right
    assert not score_image(plain, scene, style).right


def test_noise_and_blank_pictures_are_wrong() -> None:
    scene = parse("a red circle on a blue background")
    blank = np.full((128, 128, 3), COLORS["blue"], dtype=np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    assert not score_image(blank, scene).right
    assert not score_image(noise, scene).right
