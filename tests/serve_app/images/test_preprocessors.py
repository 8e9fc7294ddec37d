"""What is made of a picture for a ControlNet."""

import numpy as np
from PIL import Image, ImageDraw

from deployments.engine.types import Pixels
from serve_app.images.preprocessors import canny, lineart


def disc(size: int = 128) -> Pixels:
    image = Image.new("RGB", (size, size), (20, 30, 200))
    ImageDraw.Draw(image).ellipse([size // 4, size // 4, 3 * size // 4, 3 * size // 4], fill=(220, 40, 30))
    return np.array(image)


def distances_from_the_circle(found: Pixels) -> np.ndarray:
    size = len(found)
    rows, columns = np.nonzero(found[..., 0] > 127)
    return np.abs(np.hypot(rows - size / 2, columns - size / 2) - size / 4)


def test_canny_finds_the_outline_and_nothing_else() -> None:
    found = canny(disc(), 100, 200)
    assert found.shape == (128, 128, 3)
    assert found.dtype == np.uint8
    assert set(np.unique(found)) == {0, 255}
    off = distances_from_the_circle(found)
    assert len(off) > 150
    assert off.max() < 3


def test_canny_s_thresholds() -> None:
    faint = (disc() // 16 + 100).astype(np.uint8)
    assert not canny(faint, 100, 200).any()
    assert canny(faint, 10, 20).any()


def test_lineart_is_soft_and_finds_faint_lines_too() -> None:
    for picture in (disc(), (disc() // 4 + 100).astype(np.uint8)):
        found = lineart(picture)
        assert found.shape == picture.shape
        assert len(np.unique(found)) > 20
        off = distances_from_the_circle(found)
        assert len(off) > 150
        assert off.max() < 5
        assert found[0, 0].max() == 0


def test_what_shows_nothing_stays_black() -> None:
    plain = np.full((64, 96, 3), 77, np.uint8)
    assert not canny(plain, 100, 200).any()
    assert not lineart(plain).any()
