"""Withholds, blurs or marks flagged images."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from deployments.engine.types import Pixels, SafetyScore
from serve_app.config.settings import PreviewMode, SafetyMode

FlaggedMode = Literal["block", "blur", "flag"]
SafetyAction = Literal["none", "blocked", "blurred", "flagged"]

# averages along the longer side of a blurred image: independent of its size, and impossible to sharpen again,
# unlike a Gaussian blur of a fixed radius
_BLUR_CELLS = 6


@dataclass(frozen=True, slots=True)
class SafetyOutcome:
    """An image after the safety layers.

    Attributes:
        pixels: uint8 (height, width, 3), as they may be shown; None if withheld.
        action: what was done.
        flagged: whether the layers flagged it.
        score: their score.
    """

    pixels: Pixels | None
    action: SafetyAction
    flagged: bool
    score: SafetyScore


def apply_safety(pixels: Pixels, score: SafetyScore, mode: FlaggedMode) -> SafetyOutcome:
    """Withhold ("block"), blur ("blur") or mark ("flag") a flagged image; clean ones pass.

    Args:
        pixels: uint8 (height, width, 3), never changed in place.
        score: the safety layers' score.
        mode: what happens to a flagged image.
    """
    if not score.flagged:
        return SafetyOutcome(pixels, "none", False, score)
    match mode:
        case "block":
            return SafetyOutcome(None, "blocked", True, score)
        case "blur":
            return SafetyOutcome(blur(pixels), "blurred", True, score)
        case "flag":
            return SafetyOutcome(pixels, "flagged", True, score)


def preview_of(pixels: Pixels, mode: SafetyMode, previews: PreviewMode) -> Pixels:
    """A preview of an image that isn't judged yet: blurred if a flagged image would not be shown."""
    return blur(pixels) if mode in ("block", "blur") and previews == "blurred" else pixels


def blur(pixels: Pixels) -> Pixels:
    """Blur an image, uint8 (height, width, 3), beyond recognition: averages over a sixth of its longer side.

    Images with the same averages blur to the same bytes.
    """
    height, width = pixels.shape[:2]
    cell = max(height, width) / _BLUR_CELLS
    cells = (max(1, round(width / cell)), max(1, round(height / cell)))
    small = Image.fromarray(pixels).resize(cells, Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
