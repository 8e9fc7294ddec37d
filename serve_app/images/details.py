"""The parts of a picture that a detail draws over: which detections count, their masks, their frames.

The work takes tens of milliseconds: call it in a thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deployments.engine.errors import EngineStopped
from deployments.engine.types import LATENT_SCALE, MASKED, DenoiseResult, Detection, Pixels
from serve_app.images.inpainting import Canvas, Frame, frame_of
from serve_app.images.stored_pictures import Size
from serve_app.schemas.generation_request import DetailSettings, InpaintRequest
from serve_app.schemas.resolved import DetailInput


@dataclass(frozen=True, slots=True)
class DrawnPart:
    """A part that was drawn over: by which stage of the plan, what was found there, and the result."""

    stage: int
    detections: tuple[Detection, ...]
    result: DenoiseResult


@dataclass(frozen=True, slots=True)
class DrawnDetail:
    """A detail of a picture; `detector_hash` is the SHA-256 of the detector's file."""

    detector_hash: str
    parts: tuple[DrawnPart, ...]


@dataclass(frozen=True, slots=True)
class CutPart:
    """A part of a picture at the size at which it is drawn: (height, width, 3) and (height, width), uint8."""

    image: Pixels
    mask: Pixels
    _frame: Frame

    def put_back(self, result: DenoiseResult, picture: Pixels) -> None:
        """Draw the part's result over the picture it was cut from; pixels outside of its mask aren't touched."""
        if result.image is None:
            raise EngineStopped("a detail's stage answered without an image")
        composed = self._frame.composed(result.image)
        self._frame.part_of(picture)[:] = self._frame.part_of(composed)


@dataclass(frozen=True, slots=True)
class PartFrame:
    """Where a part lies.

    Attributes:
        detections: that it is of; several where they are drawn as one.
        mask: (height, width) of the picture, uint8.
        detail: of the generation.
        box: that is drawn: left, top, right and bottom in pixels of the picture.
    """

    detections: tuple[Detection, ...]
    mask: Pixels
    detail: DetailInput
    box: tuple[int, int, int, int]

    def touches(self, other: "PartFrame") -> bool:
        """Whether the boxes have pixels in common."""
        left, top, right, bottom = self.box
        other_left, other_top, other_right, other_bottom = other.box
        return left < other_right and other_left < right and top < other_bottom and other_top < bottom

    def cut(self, picture: Pixels) -> CutPart:
        """The part of a picture as it is now."""
        frame = _frame(picture, self.mask, self.detail)
        if frame.mask is None:
            raise ValueError("a part without a mask")
        return CutPart(frame.image, frame.mask, frame)


def chosen(detections: Sequence[Detection], detail: DetailSettings, pixels: int) -> tuple[Detection, ...]:
    """The detections that count, the largest first; `pixels` of the picture."""
    fitting = [
        one
        for one in detections
        if (not detail.classes or one.label in detail.classes)
        and detail.min_area <= _area(one) / pixels <= detail.max_area
    ]
    return tuple(sorted(fitting, key=_area, reverse=True)[: detail.max_count])


def frames_of(detections: Sequence[Detection], detail: DetailInput, size: Size) -> list[PartFrame]:
    """The frames of what is drawn over, in the order of the detections; those with too small a mask are left out.

    Args:
        detections: that count.
        detail: of the generation.
        size: of the picture.
    """
    masked: list[tuple[tuple[Detection, ...], Pixels]] = [
        ((one,), mask) for one in detections if (mask := _mask(one, detail, size)).any()
    ]
    if detail.combine != "each" and masked:
        together = np.maximum.reduce([mask for _, mask in masked])
        masked = [(tuple(detections), together if detail.combine == "all" else 255 - together)]
    empty = np.zeros((size[1], size[0], 3), np.uint8)
    frames = []
    for of_mask, mask in masked:
        frame = _frame(empty, mask, detail)
        # what the engine looks at: a pixel of each latent cell
        if frame.mask is not None and (frame.mask[::LATENT_SCALE, ::LATENT_SCALE] >= MASKED).any():
            frames.append(PartFrame(of_mask, mask, detail, frame.box))
    return frames


def _frame(picture: Pixels, mask: Pixels, detail: DetailInput) -> Frame:
    """A masked part of the picture, and what is around it, at the detail's size."""
    inpaint = InpaintRequest(blur=detail.blur, padding=detail.padding, only_masked=True)
    return frame_of(Canvas(picture, mask), inpaint, detail.width, detail.height)


def _mask(one: Detection, detail: DetailSettings, size: Size) -> Pixels:
    """A detection's box, moved and extended."""
    width, height = size
    grown = detail.dilation
    left, right = (min(width, max(0, x + detail.offset_x)) for x in (one.left - grown, one.right + grown))
    top, bottom = (min(height, max(0, y + detail.offset_y)) for y in (one.top - grown, one.bottom + grown))
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 255
    return mask


def _area(one: Detection) -> int:
    return (one.right - one.left) * (one.bottom - one.top)
