"""Regions are measured on real drawings: masks lie where the objects are, and each way has its row."""

import numpy as np

from benchmarks.regions import Drawer, Way, halves, region_prompts, scenes_of_two, table


def test_each_object_has_its_half() -> None:
    scenes = scenes_of_two(40)
    assert len(set(scenes)) == 40
    assert {scene.vertical for scene in scenes} == {True, False}
    for scene in scenes:
        first, second = halves(scene)
        assert np.array_equal(first, 255 - second)
        assert first[0, 0] == 255
        assert first[-1, 0] == (0 if scene.vertical else 255)
        assert all(item.color in prompt for item, prompt in zip(scene.objects, region_prompts(scene), strict=True))


def test_both_ways_are_drawn_and_scored() -> None:
    scenes = scenes_of_two(1)
    with Drawer(threads=1) as drawer:
        scores = {way: drawer.scores(scenes, way) for way in (Way(None), Way(0.2))}
    assert all(score.background for (score,) in scores.values())
    assert [line.split("  ")[0] for line in table(scores).splitlines()] == [
        "of 1 scenes, wrong:",
        "-" * len("regions, base_weight 0.2"),
        "prompt",
        "regions, base_weight 0.2",
    ]
