"""Preprocessors for ControlNets: Canny edges and line art, white on black, by OpenCV alone.

They take milliseconds: call them in a thread.
"""

import cv2
import numpy as np

from deployments.engine.types import Pixels

cv2.setNumThreads(1)  # requests already run in parallel

_FINE, _COARSE = 0.7, 2.5  # sigmas in pixels, at 512 x 512
_FULL = 99.0  # percentile of the differences that becomes white


def canny(picture: Pixels, low: int, high: int) -> Pixels:
    """Edges one pixel wide (Canny 1986).

    Args:
        picture: uint8 (height, width, 3), like the result.
        low: an edge continues while the gradient is above this.
        high: an edge begins where the gradient is above this.
    """
    return _on_black(cv2.Canny(np.ascontiguousarray(picture), low, high))


def lineart(picture: Pixels) -> Pixels:
    """Lines where colours differ: the difference of two blurred copies (difference of Gaussians)."""
    scale = max(1.0, min(picture.shape[:2]) / 512)
    colours = picture.astype(np.float32)
    fine, coarse = (cv2.GaussianBlur(colours, (0, 0), sigma * scale) for sigma in (_FINE, _COARSE))
    lines = np.abs(fine - coarse).max(axis=2)
    seen = lines[lines > 1]
    white = max(16.0, float(np.percentile(seen, _FULL))) if len(seen) else 16.0
    return _on_black((255 * lines / white).clip(0, 255).astype(np.uint8))


def _on_black(lines: object) -> Pixels:
    return np.repeat(np.asarray(lines, np.uint8)[..., None], 3, axis=2)
