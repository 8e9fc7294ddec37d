"""Masks of regions: from boxes and from files, for each pass."""

from typing import Any

import numpy as np
import pytest

from deployments.engine.errors import InvalidRequest
from deployments.engine.types import Pixels
from serve_app.config.settings import Settings
from serve_app.images.decode import read_source
from serve_app.images.inpainting import Frame, canvas_of, frame_of
from serve_app.images.region_masks import kept_regions, read_regions, regions_of_pass
from serve_app.images.steering import SteeringSources
from serve_app.images.stored_pictures import read_kept
from serve_app.planning.resolve import resolve
from serve_app.schemas.generation_request import GenerationRequest
from tests.serve_app.images.pictures import gradient, sent, square

SIDE = 128
PIXELS = 1 << 18


def masks(settings: Settings, region: dict[str, Any], size: tuple[int, int] = (SIDE, SIDE), **fields: Any) -> Pixels:
    """The mask of one region in a pass of `size`."""
    asked = {"prompt": "x", "width": SIDE, "height": SIDE, **fields, "regions": [{"prompt": "y", **region}]}
    request = GenerationRequest.model_validate(asked)
    source = None if request.image is None else read_source(request.image, request.mask, PIXELS)
    sources = SteeringSources(regions=read_regions(request, PIXELS))
    generation = resolve(request, settings, drawn_seed=1, source=source, steering=sources).generation
    frame: Frame | None = None
    if source is not None and generation.image is not None:
        canvas = canvas_of(source, generation.image, SIDE, SIDE)
        frame = frame_of(canvas, generation.image, SIDE, SIDE)
    stored = [read_kept(file) for file in sources.stored(request, generation, source)]
    (one,) = regions_of_pass(generation, stored or [None], size, frame)
    return one.mask


def test_a_box_is_as_large_as_it_says(settings: Settings) -> None:
    box = {"x": 0.25, "y": 0.5, "width": 0.5, "height": 0.25}
    for side in (SIDE, 2 * SIDE):
        expected = np.zeros((side, side), np.uint8)
        expected[side // 2 : side * 3 // 4, side // 4 : side * 3 // 4] = 255
        assert (masks(settings, {"box": box}, (side, side)) == expected).all()


def test_a_box_s_edge_within_a_pixel_is_grey(settings: Settings) -> None:
    mask = masks(settings, {"box": {"x": 10.25 / SIDE, "y": 0.0, "width": 20.5 / SIDE, "height": 1.0}})
    assert mask[0, 9:12].tolist() == [0, 191, 255]
    assert mask[0, 29:32].tolist() == [255, 191, 0]


def test_a_mask_is_stretched_to_each_pass(settings: Settings) -> None:
    small = square(32, 32, 8, 0, 16)
    expected = small.repeat(4, axis=0).repeat(4, axis=1)
    assert (masks(settings, {"mask": sent(small)}) == expected).all()
    larger = masks(settings, {"mask": sent(small)}, (2 * SIDE, 2 * SIDE), hires={"scale": 2.0})
    assert (larger == expected.repeat(2, axis=0).repeat(2, axis=1)).all()


def test_both_follow_the_part_that_is_drawn(settings: Settings) -> None:
    """Of which they are fractions of the whole."""
    image = {"image": sent(gradient(256, 256)), "mask": sent(square(256, 256, 64, 64, 64))}
    part = {**image, "inpaint": {"only_masked": True, "padding": 0}}
    left = np.zeros((256, 256), np.uint8)
    left[:, :96] = 255
    for region in ({"mask": sent(left)}, {"box": {"x": 0.0, "y": 0.0, "width": 96 / 256, "height": 1.0}}):
        mask = masks(settings, region, **part)
        assert mask.shape == (SIDE, SIDE)
        assert (mask[:, : SIDE // 2 - 2] == 255).all()
        assert (mask[:, SIDE // 2 + 2 :] == 0).all()
        whole = masks(settings, region, **image)
        assert (whole[:, :48] == 255).all()
        assert (whole[:, 49:] == 0).all()
    outside = masks(settings, {"box": {"x": 0.75, "y": 0.0, "width": 0.25, "height": 1.0}}, **part)
    assert not outside.any()  # nowhere in this part, which is no fault


@pytest.mark.parametrize(
    "mask", [np.zeros((64, 64), np.uint8), square(64, 64, 0, 0, 1), np.full((64, 64), 100, np.uint8)]
)
def test_a_region_that_is_nowhere_is_refused(mask: Pixels) -> None:
    request = GenerationRequest.model_validate(
        {"prompt": "x", "regions": [{"prompt": "y"}, {"prompt": "y", "mask": sent(mask)}]}
    )
    with pytest.raises(InvalidRequest, match="has no white area") as refused:
        kept_regions(read_regions(request, PIXELS), (64, 64))
    assert refused.value.field == "regions.1.mask"
