"""The parts that a detail draws over: which count, where they lie, and that nothing else is touched."""

from typing import Any

import numpy as np
import pytest

from deployments.engine.types import DenoiseResult, Detection, StageTimings
from serve_app.images.details import chosen, frames_of
from serve_app.schemas.resolved import DetailInput
from tests.serve_app.images.pictures import gradient

SIZE = (200, 100)
SMALL, LARGE = Detection("face", 0.9, 10, 10, 30, 30), Detection("hand", 0.4, 100, 20, 160, 80)


def detail(**fields: Any) -> DetailInput:
    own = {"steps": 10, "guidance_scale": 5.0, "sampler": "euler", "width": 64, "height": 64, **fields}
    return DetailInput(detector="one", **{"dilation": 0, "blur": 0, "padding": 0, **own})


def painted(value: int) -> DenoiseResult:
    timings = StageTimings(0.0, 0.0, 0.0, 0.0)
    image = np.full((64, 64, 3), value, np.uint8)
    return DenoiseResult("lane", 4, "demo", "0", "best-effort", timings, "cpu", "float32", image=image)


def test_the_largest_count_and_only_those_that_were_asked_for() -> None:
    pixels = SIZE[0] * SIZE[1]
    assert chosen((SMALL, LARGE), detail(), pixels) == (LARGE, SMALL)
    assert chosen((SMALL, LARGE), detail(max_count=1), pixels) == (LARGE,)
    assert chosen((SMALL, LARGE), detail(classes=("face",)), pixels) == (SMALL,)
    assert chosen((SMALL, LARGE), detail(min_area=0.0201), pixels) == (LARGE,)
    assert chosen((SMALL, LARGE), detail(max_area=0.1), pixels) == (SMALL,)


@pytest.mark.parametrize(
    ("fields", "box"),
    [
        ({}, (100, 20, 160, 80)),
        ({"dilation": 5}, (95, 15, 165, 85)),
        ({"dilation": -5}, (105, 25, 155, 75)),
        ({"offset_x": 10, "offset_y": -20}, (110, 0, 170, 60)),
        ({"dilation": 50}, (50, 0, 200, 100)),
        ({"padding": 8}, (92, 12, 168, 88)),
    ],
)
def test_where_a_part_lies(fields: dict[str, Any], box: tuple[int, int, int, int]) -> None:
    (frame,) = frames_of((LARGE,), detail(**fields, width=box[2] - box[0], height=box[3] - box[1]), SIZE)
    assert frame.box == box


def test_a_part_has_the_shape_that_it_is_drawn_in() -> None:
    (frame,) = frames_of((LARGE,), detail(width=128, height=64), SIZE)
    left, top, right, bottom = frame.box
    assert (right - left, bottom - top) == (120, 60)


def test_what_shrinks_to_nothing_is_no_part() -> None:
    assert frames_of((SMALL,), detail(dilation=-10), SIZE) == []
    assert frames_of((Detection("face", 0.9, 10, 10, 12, 12),), detail(blur=16), SIZE) == []
    assert frames_of((), detail(combine="others"), SIZE) == []


def test_parts_drawn_as_one_and_all_but_the_parts() -> None:
    (together,) = frames_of((LARGE, SMALL), detail(combine="all"), SIZE)
    (others,) = frames_of((LARGE, SMALL), detail(combine="others"), SIZE)
    assert together.detections == others.detections == (LARGE, SMALL)
    mask = np.zeros((100, 200), bool)
    mask[10:30, 10:30] = mask[20:80, 100:160] = True
    assert ((together.mask == 255) == mask).all()
    assert ((others.mask == 255) == ~mask).all()


def test_frames_that_have_pixels_in_common() -> None:
    near = Detection("hand", 0.4, 158, 70, 190, 90)
    one, other, third = frames_of((LARGE, near, SMALL), detail(), SIZE)
    assert one.touches(other)
    assert other.touches(one)
    assert not third.touches(one)


@pytest.mark.parametrize("fields", [{}, {"blur": 4, "dilation": 3, "padding": 16}, {"combine": "others", "blur": 2}])
def test_nothing_but_the_mask_is_touched(fields: dict[str, Any]) -> None:
    picture = gradient(*SIZE)
    (frame,) = frames_of((LARGE,), detail(**fields), SIZE)
    cut = frame.cut(picture)
    assert cut.image.shape == (64, 64, 3)
    assert cut.mask.max() == 255
    drawn = picture.copy()
    cut.put_back(painted(7), drawn)
    changed = (drawn != picture).any(2)
    reach = np.zeros(picture.shape[:2], bool)
    around = 4 * (fields.get("blur", 0) + fields.get("dilation", 0))
    reach[20 - around if around < 20 else 0 : 80 + around, 100 - around : 160 + around] = True
    inner = drawn[45:55, 125:135]
    if fields.get("combine") == "others":
        assert (inner == picture[45:55, 125:135]).all()
        assert (drawn[:5, :5] == 7).all()
    else:
        assert (inner == 7).all()
        assert not changed[~reach].any()
