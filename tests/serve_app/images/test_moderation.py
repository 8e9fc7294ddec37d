import numpy as np
import pytest

from deployments.engine.types import Pixels, SafetyScore
from serve_app.images.moderation import apply_safety, blur

CLEAN = SafetyScore(score=0.1, flagged=False)
FLAGGED = SafetyScore(score=0.95, flagged=True, flagged_by=("classifier",))


def picture(height: int, width: int) -> Pixels:
    """Rings: much detail, at a scale that grows with the picture."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - height / 2, columns - width / 2) / max(height, width)
    rings = np.where(np.sin(distance * 80) > 0, 230, 20)
    return np.repeat(rings[..., None], 3, axis=-1).astype(np.uint8)


@pytest.mark.parametrize("mode", ["block", "blur", "flag"])
def test_a_clean_image_passes_untouched(mode: str) -> None:
    pixels = picture(64, 64)
    outcome = apply_safety(pixels, CLEAN, mode)  # type: ignore[arg-type]
    assert outcome.pixels is pixels
    assert (outcome.action, outcome.flagged, outcome.score) == ("none", False, CLEAN)


def test_a_flagged_image_is_withheld_blurred_or_marked() -> None:
    pixels = picture(64, 64)
    before = pixels.copy()
    blocked, blurred, marked = (apply_safety(pixels, FLAGGED, mode) for mode in ("block", "blur", "flag"))
    assert (blocked.pixels, blocked.action) == (None, "blocked")
    assert blurred.action == "blurred"
    assert blurred.pixels is not None
    assert not np.array_equal(blurred.pixels, pixels)
    assert marked.pixels is pixels
    assert marked.action == "flagged"
    assert all(outcome.flagged and outcome.score == FLAGGED for outcome in (blocked, blurred, marked))
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize(
    ("height", "width"), [(64, 64), (256, 256), (256, 192), (1024, 1024), (512, 1024), (2048, 256)]
)
def test_the_blur_leaves_no_detail_at_any_size(height: int, width: int) -> None:
    pixels = picture(height, width)
    blurred = blur(pixels)
    assert blurred.shape == pixels.shape
    assert blurred.dtype == np.uint8
    sharp, soft = (image[..., 0].astype(float) - image[..., 0].mean() for image in (pixels, blurred))
    # what is left of the detail (anything finer than a tenth of the longer side), as power
    spectrum = [np.abs(np.fft.fft2(image)) ** 2 for image in (sharp, soft)]
    scale = max(height, width)
    rows, columns = np.fft.fftfreq(height) * scale, np.fft.fftfreq(width) * scale
    fine = np.hypot(rows[:, None], columns[None, :]) > 10
    assert spectrum[1][fine].sum() < 0.002 * spectrum[0][fine].sum()
    # and neighbouring pixels differ by less the larger the picture is
    assert np.abs(np.diff(soft, axis=1)).max() <= 1 + 2.0 * 255 * 6 / scale


@pytest.mark.parametrize("size", [48, 240, 1020])
def test_what_the_blur_drops_cannot_be_had_back(size: int) -> None:
    """Two pictures that differ everywhere but have the same coarse averages blur to the same bytes."""
    cell = size // 6
    left_half = np.tile((np.arange(size) % cell < cell // 2)[None, :, None], (size, 1, 3))
    one, two = np.where(left_half, 250, 10).astype(np.uint8), np.where(left_half, 10, 250).astype(np.uint8)
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(blur(one), blur(two))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 1024), (1024, 8), (5, 3)])
def test_the_blur_takes_any_shape(height: int, width: int) -> None:
    assert blur(picture(height, width)).shape == (height, width, 3)
