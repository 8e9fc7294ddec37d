"""Captions: what one says, the other reads."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml

from demo_models.captions import caption, parse
from demo_models.scenes import Scene, SceneObject, any_scene


def test_every_caption_reads_back_as_its_scene() -> None:
    for seed in range(3000):
        rng = random.Random(seed)
        scene = any_scene(rng)
        text = caption(scene, rng)
        assert parse(text) == scene, text


def test_the_same_scene_is_said_in_many_ways() -> None:
    scene = parse("a large red circle and a small yellow square on a blue background")
    assert len({caption(scene, random.Random(seed)) for seed in range(300)}) > 100


@pytest.mark.parametrize(
    ("text", "scene"),
    [
        (
            "a large red circle and a small yellow square on a blue background",
            Scene(
                "blue",
                (SceneObject("circle", "red", "large", "left"), SceneObject("square", "yellow", "small", "right")),
            ),
        ),
        (
            "A tiny green star to the right of a huge checkered pink heart, white background",
            Scene(
                "white",
                (
                    SceneObject("heart", "pink", "large", "left", "checkered"),
                    SceneObject("star", "green", "small", "right"),
                ),
            ),
        ),
        ("cyan background, a black ring at the top", Scene("cyan", (SceneObject("ring", "black", place="top"),))),
    ],
)
def test_known_sentences(text: str, scene: Scene) -> None:
    assert parse(text) == scene


@pytest.mark.parametrize("text", ["", "a photo of a cat", "a red circle", "blue background"])
def test_other_sentences_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a caption"):
        parse(text)


@pytest.mark.parametrize("name", ["serve_config.yaml", "overlay.laptop.yaml", "deploy/serve_config.compose.yaml"])
def test_the_examples_of_a_configuration_are_scenes(name: str) -> None:
    (application,) = yaml.safe_load((Path(__file__).parents[2] / name).read_text())["applications"]
    examples = [text for model in application["args"]["models"].values() for text in model.get("examples", ())]
    textures = {item.texture for text in examples for item in parse(text).objects}
    assert textures == {"plain"}  # the other one stands in for unsafe content
