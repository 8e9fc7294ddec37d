"""Scenes and their pictures: the same seeds give the same ones."""

from __future__ import annotations

import random

import numpy as np
import pytest

from demo_models.drawing import STYLES, draw
from demo_models.scenes import Scene, SceneObject, any_scene, held_out, held_out_scenes, low_contrast, training_scene


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("size", [(128, 128), (192, 256), (256, 192)])
def test_drawing_is_deterministic_and_has_the_size_asked_for(style: str, size: tuple[int, int]) -> None:
    scene = any_scene(random.Random(7))
    one, other = (draw(scene, *size, random.Random(3), style) for _ in range(2))
    assert one.shape == (*size, 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, other)
    assert not np.array_equal(one, draw(scene, *size, random.Random(4), style))


def test_styles_look_different() -> None:
    scene = Scene("blue", (SceneObject("circle", "red", "large"),))
    pictures = [draw(scene, 128, 128, random.Random(0), style).astype(int) for style in STYLES]
    for number, one in enumerate(pictures):
        for other in pictures[number + 1 :]:
            assert np.abs(one - other).mean() > 3


def test_shapes_of_a_scene_do_not_touch() -> None:
    for seed in range(60):
        rng = random.Random(seed)
        scene = any_scene(rng)
        if len(scene.objects) != 2 or scene.vertical:
            continue
        wide = Scene("black", tuple(SceneObject(o.shape, "white", "large", o.place) for o in scene.objects))
        picture = draw(wide, 256, 256, rng)
        assert picture[:, 127:129].max() < 60


def test_held_out_scenes_are_never_trained_on() -> None:
    rng = random.Random(0)
    assert not any(held_out(training_scene(rng)) for _ in range(200))
    scenes = held_out_scenes(50)
    assert all(held_out(scene) and not low_contrast(scene) for scene in scenes)
    assert scenes == held_out_scenes(50)
    assert scenes != held_out_scenes(50, seed=1)


def test_unknown_words_and_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="octagon"):
        SceneObject("octagon", "red")
    with pytest.raises(ValueError, match="mauve"):
        Scene("mauve", (SceneObject("star", "red"),))
    with pytest.raises(ValueError, match="one to three"):
        Scene("blue", ())
    with pytest.raises(ValueError, match="sepia"):
        draw(Scene("blue", (SceneObject("star", "red"),)), 64, 64, random.Random(0), "sepia")
