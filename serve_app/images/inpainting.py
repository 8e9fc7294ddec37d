"""Prepares a client's picture for a stage, and composes the result: scaling, extending, masks, crops.

    canvas   the picture, scaled or extended, with its mask: all of the result's pixels; stored beside the job
    frame    the part of the canvas that is drawn, at the size at which it is drawn

What the mask keeps comes back to the byte. The work takes tens of milliseconds: call it in a thread.
"""

import io
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps

from deployments.engine.errors import InvalidRequest
from deployments.engine.types import LATENT_SCALE, MASKED, DenoiseResult, Pixels
from serve_app.images.decode import Source
from serve_app.schemas.generation_request import ImageFit, InpaintRequest
from serve_app.schemas.resolved import HiresInput, ImageInput

_RESAMPLING = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}


@dataclass(frozen=True, slots=True)
class Canvas:
    """All pixels of the result before anything is drawn.

    Attributes:
        pixels: (height, width, 3), uint8.
        mask: (height, width), uint8, 255 is painted anew, 0 kept; None if all of it is drawn.
    """

    pixels: Pixels
    mask: Pixels | None

    def to_png(self) -> bytes:
        """The canvas as `from_png` reads it; the mask is the file's transparency."""
        layers = self.pixels if self.mask is None else np.dstack([self.pixels, self.mask])
        file = io.BytesIO()
        Image.fromarray(layers).save(file, "PNG", compress_level=1)
        return file.getvalue()

    @classmethod
    def from_png(cls, data: bytes) -> "Canvas":
        """The canvas that `to_png` wrote."""
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            layers = np.asarray(image)
        return cls(np.ascontiguousarray(layers[..., :3]), layers[..., 3].copy() if layers.shape[2] == 4 else None)


class _Box(NamedTuple):
    """A rectangle of a canvas, from left and top up to right and bottom."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        return self.right - self.left, self.bottom - self.top


@dataclass(frozen=True, slots=True)
class Frame:
    """The part of a canvas that is drawn, at the size at which it is drawn.

    Attributes:
        image: (height, width, 3), uint8.
        mask: (height, width), uint8; None without one.
    """

    image: Pixels
    mask: Pixels | None
    _canvas: Canvas
    _box: _Box
    _soft: Pixels | None

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Where it lies on the canvas: left, top, right and bottom in pixels; the last two are beyond."""
        return self._box

    @property
    def canvas_size(self) -> tuple[int, int]:
        """Width and height of the canvas, in pixels."""
        height, width = self._canvas.pixels.shape[:2]
        return width, height

    def part_of(self, picture: Pixels) -> Pixels:
        """The same part of another picture of the canvas's size."""
        left, top, right, bottom = self._box
        return picture[top:bottom, left:right]

    def composed(self, drawn: Pixels) -> Pixels:
        """The result: `drawn`, of the shape of `image`, within the mask, and the canvas elsewhere."""
        if self._soft is None:
            return drawn
        scaled = _scaled(Image.fromarray(drawn), self._box.size, Image.Resampling.LANCZOS)
        result = Image.fromarray(self._canvas.pixels)
        result.paste(scaled, self._box, Image.fromarray(self._soft).crop(self._box))
        return np.asarray(result)


def canvas_of(source: Source, asked: ImageInput, width: int, height: int) -> Canvas:
    """The canvas of a request.

    It is `width` x `height`, as the drawing is, unless only its masked part is drawn, or its latents are scaled.

    Raises InvalidRequest for an empty mask.
    """
    picture = Image.fromarray(source.image.pixels)
    mask = None if source.mask is None else Image.fromarray(source.mask.pixels)
    if mask is not None and asked.invert:
        mask = ImageOps.invert(mask)
    if asked.outpaint is not None:
        picture, mask = _extended(picture, mask, asked.outpaint)
    elif asked.fit == "latent":
        picture = picture.crop((0, 0, *_whole_cells(*picture.size)))
    elif not asked.only_masked:
        picture = _fitted(picture, (width, height), asked.fit, Image.Resampling.LANCZOS)
        mask = None if mask is None else _fitted(mask, (width, height), asked.fit, Image.Resampling.BILINEAR)
    canvas = Canvas(np.asarray(picture), None if mask is None else np.asarray(mask))
    frame = frame_of(canvas, asked, width, height)  # seen once here, so that a mask that does nothing is refused
    if frame.mask is not None and not (frame.mask[::LATENT_SCALE, ::LATENT_SCALE] >= MASKED).any():
        raise InvalidRequest(
            "mask has no white area, or a too small one: nothing would be painted"
            + ("" if asked.only_masked else " (inpaint.only_masked draws a small part larger)"),
            "mask",
        )
    return canvas


def frame_of(canvas: Canvas, asked: InpaintRequest, width: int, height: int) -> Frame:
    """The part of the canvas that is drawn, at width x height."""
    whole = _Box(0, 0, canvas.pixels.shape[1], canvas.pixels.shape[0])
    if canvas.mask is None:
        return Frame(canvas.pixels, None, canvas, whole, None)
    mask = Image.fromarray(canvas.mask)
    soft = mask.filter(ImageFilter.GaussianBlur(asked.blur)) if asked.blur else mask
    box = whole
    if asked.only_masked:
        # where the blur has faded to nothing, nothing is pasted
        box = _around(np.asarray(soft) > 0, asked.padding, width / height) or whole
    size = width, height
    picture = _scaled(Image.fromarray(canvas.pixels).crop(box), size, Image.Resampling.LANCZOS)
    hard = _scaled(soft.crop(box), size, Image.Resampling.BILINEAR)
    if asked.fill == "blur":
        picture = _filled(picture, hard)
    return Frame(np.asarray(picture), np.asarray(hard), canvas, box, np.asarray(soft))


def _whole_cells(width: int, height: int) -> tuple[int, int]:
    return width - width % LATENT_SCALE, height - height % LATENT_SCALE


def covering(first: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """The size in which a picture of size `first` covers `size`: width and height in pixels, multiples of 8."""
    (width, height), (least_width, least_height) = first, size
    return _whole_cells(
        max(least_width, least_height * width // height), max(least_height, least_width * height // width)
    )


def middle_of(picture: Pixels, size: tuple[int, int]) -> Pixels:
    """The middle of a picture (height, width, 3), uint8, in whole latent cells, as A1111 cuts it."""
    height, width = picture.shape[:2]
    left, top = (
        (whole - part) // LATENT_SCALE // 2 * LATENT_SCALE for whole, part in zip((width, height), size, strict=True)
    )
    return np.ascontiguousarray(picture[top : top + size[1], left : left + size[0]])


def resized(picture: Pixels, upscaler: str, width: int, height: int) -> Pixels:
    """A picture (height, width, 3), uint8, resized by "lanczos" or "nearest"."""
    return np.array(Image.fromarray(picture).resize((width, height), _RESAMPLING[upscaler]))


def second_pass_image(first: DenoiseResult | None, hires: HiresInput | None) -> Pixels | None:
    """The first pass's picture at the second's size; None if latents are handed over, or a model enlarges it."""
    if first is None or first.image is None or hires is None or hires.upscaler_model is not None:
        return None
    height, width = first.image.shape[:2]
    size = hires.width, hires.height
    return middle_of(resized(first.image, hires.upscaler, *covering((width, height), size)), size)


def _fitted(image: Image.Image, size: tuple[int, int], fit: ImageFit, how: Image.Resampling) -> Image.Image:
    """An image at another size: stretched, cut to its middle, or extended by its edges, as A1111's resize modes do."""
    if image.size == size or fit == "stretch":
        return _scaled(image, size, how)
    (width, height), (own_width, own_height) = size, image.size
    chosen = max if fit == "crop" else min
    scaled = chosen(width, own_width * height // own_height), chosen(height, own_height * width // own_width)
    scaled = max(1, scaled[0]), max(1, scaled[1])
    left, top = width // 2 - scaled[0] // 2, height // 2 - scaled[1] // 2
    pixels = np.asarray(_scaled(image, scaled, how))
    if fit == "crop":
        return Image.fromarray(np.ascontiguousarray(pixels[-top : height - top, -left : width - left]))
    around = [(top, height - top - scaled[1]), (left, width - left - scaled[0]), (0, 0)]
    return Image.fromarray(np.pad(pixels, around[: pixels.ndim], mode="edge"))


# radius in pixels, and how often what is blurred by it is laid over the wider ones
_BLURS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))


def _filled(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """A picture whose masked part has the colours around it, ever coarser farther in: A1111's masked content "fill"."""
    kept = Image.new("RGBa", picture.size)
    kept.paste(picture.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
    result = Image.new("RGBA", picture.size)
    for radius, times in _BLURS:
        blurred = kept.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            result.alpha_composite(blurred)
    return result.convert("RGB")


def _scaled(image: Image.Image, size: tuple[int, int], how: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, how)


def _extended(
    picture: Image.Image, mask: Image.Image | None, by: tuple[int, int, int, int]
) -> tuple[Image.Image, Image.Image]:
    """Extend picture and mask left, top, right, bottom: edge pixels are repeated, and all that is new is masked."""
    left, top, right, bottom = by
    around = ((top, bottom), (left, right))
    pixels = np.pad(np.asarray(picture), (*around, (0, 0)), mode="edge")
    inner = np.zeros((picture.height, picture.width), np.uint8) if mask is None else np.asarray(mask)
    return Image.fromarray(pixels), Image.fromarray(np.pad(inner, around, constant_values=255))


def _around(masked: npt.NDArray[np.bool_], padding: int, ratio: float) -> _Box | None:
    """The box of the masked pixels and `padding` around it, grown to `ratio` (width / height) as far as it can."""
    columns, rows = np.flatnonzero(masked.any(0)), np.flatnonzero(masked.any(1))
    if not len(columns):
        return None
    height, width = masked.shape
    left, right = _padded(int(columns[0]), int(columns[-1]) + 1, padding, width)
    top, bottom = _padded(int(rows[0]), int(rows[-1]) + 1, padding, height)
    if (right - left) / (bottom - top) < ratio:
        left, right = _grown(left, right, round((bottom - top) * ratio), width)
    else:
        top, bottom = _grown(top, bottom, round((right - left) / ratio), height)
    return _Box(left, top, right, bottom)


def _padded(start: int, end: int, padding: int, limit: int) -> tuple[int, int]:
    return max(0, start - padding), min(limit, end + padding)


def _grown(start: int, end: int, wanted: int, limit: int) -> tuple[int, int]:
    """start..end grown to `wanted`, if there is room, around the same middle."""
    wanted = min(limit, max(wanted, end - start))
    start = min(max(0, start - (wanted - (end - start)) // 2), limit - wanted)
    return start, start + wanted
