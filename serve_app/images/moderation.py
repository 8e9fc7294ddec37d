"""What becomes of an image that was flagged: withheld, blurred, or marked. Pure; knows no classifier."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from deployments.engine.types import Pixels, SafetyScore
from serve_app.config.settings import PreviewMode, SafetyMode

FlaggedMode = Literal["block", "blur", "flag"]
SafetyAction = Literal["none", "blocked", "blurred", "flagged"]

# a blurred image keeps this many colours along its longer side, whatever its size; the rest is gone for good,
# where a Gaussian blur of a fixed radius would leave a large image recognisable, and could be sharpened again
_BLUR_CELLS = 6


@dataclass(frozen=True, slots=True)
class SafetyOutcome:
    """An image after the safety layers.

    pixels: uint8 (height, width, 3), as they may be shown; None where the image is withheld.
    action: what was done about it. flagged, score: what the layers said.
    """

    pixels: Pixels | None
    action: SafetyAction
    flagged: bool
    score: SafetyScore


def apply_safety(pixels: Pixels, score: SafetyScore, mode: FlaggedMode) -> SafetyOutcome:
    """Clean images pass; a flagged one is withheld ("block"), blurred ("blur") or passed with a mark ("flag").

    pixels: uint8 (height, width, 3), never changed in place.
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
    """What may be shown of an image that nothing has judged yet: as it is only where a flagged one would be, too."""
    return blur(pixels) if mode in ("block", "blur") and previews == "blurred" else pixels


def blur(pixels: Pixels) -> Pixels:
    """Beyond recognition at any size: averages over a sixth of the longer side, with smooth ways between them.

    uint8 (height, width, 3) in and out. Two pictures with the same averages blur to the same bytes.
    """
    height, width = pixels.shape[:2]
    cell = max(height, width) / _BLUR_CELLS
    cells = (max(1, round(width / cell)), max(1, round(height / cell)))
    small = Image.fromarray(pixels).resize(cells, Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
