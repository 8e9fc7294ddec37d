"""A1111's script "SD upscale": a picture is enlarged, drawn over in overlapping tiles, and put together again.

Pure but for pixels: what enlarges and draws is the caller's (routes.py). Each call takes tens of milliseconds: call it
in a thread.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import Field

from deployments.engine.errors import InvalidRequest
from deployments.engine.types import Pixels
from serve_app.api.a1111.names import upscaler_of
from serve_app.api.a1111.options import Loose
from serve_app.images.encode import xmp_packet
from serve_app.images.infotext import XMP_CHUNK
from serve_app.planning.sizes import Size
from serve_app.schemas.digital_source_type import COMPOSITE
from serve_app.schemas.validation import shown, validated

SCRIPT_NAME = "sd upscale"

# tiles of one request
_MOST_TILES = 64

_RESAMPLING = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}


class _Arguments(Loose):
    overlap: int = Field(default=64, ge=0, le=256)
    upscaler: str = "None"
    scale: float = Field(default=2.0, ge=1.0, le=8.0)


class SdUpscale(NamedTuple):
    """What the script's arguments say; `upscaler` is None where the picture is drawn over at its own size."""

    overlap: int
    upscaler: str | None
    scale: float
    warning: str | None = None

    @classmethod
    def of(cls, arguments: Sequence[Any], known: Sequence[str], models: Sequence[str]) -> "SdUpscale":
        """Read script_args: nothing, overlap, upscaler, scale. Raises InvalidRequest.

        Args:
            arguments: of the request.
            known: the upscalers' names in the order of GET /sdapi/v1/upscalers, which a number counts.
            models: those of them that are models.
        """
        named = dict(zip(("overlap", "upscaler", "scale"), arguments[1:4], strict=False))
        number = named.get("upscaler")
        if isinstance(number, int) and 0 <= number < len(known):
            named["upscaler"] = known[number]
        try:
            read = validated(_Arguments, named)
        except InvalidRequest as error:
            raise InvalidRequest(f"script_args: {error.message}", "script_args") from None
        if read.upscaler.strip().lower() == "none":
            return cls(read.overlap, None, 1.0)
        upscaler = upscaler_of(read.upscaler, models)
        if upscaler.name not in (*_RESAMPLING, *models):
            message = f"script_args: upscaler is {shown(read.upscaler)}; known: {', '.join(known)}"
            raise InvalidRequest(message, "script_args")
        return cls(read.overlap, upscaler.name, read.scale, upscaler.warning)

    @property
    def model(self) -> str | None:
        """The upscaler, if it is a model."""
        return None if self.upscaler in (None, *_RESAMPLING) else self.upscaler

    def size(self, picture: Size) -> Size:
        """Of the result, in multiples of 8."""
        return Size(*(max(8, int(side * self.scale) // 8 * 8) for side in picture))

    def resized(self, picture: Pixels, size: Size) -> Pixels:
        """The picture at the result's size, without a model."""
        if size == (picture.shape[1], picture.shape[0]):
            return picture
        how = _RESAMPLING.get(self.upscaler or "lanczos", Image.Resampling.LANCZOS)
        return np.asarray(Image.fromarray(picture).resize(size, how))


@dataclass(frozen=True, slots=True)
class TileGrid:
    """The tiles of a picture, which overlap by so many pixels at least."""

    size: Size
    tile: Size
    overlap: int

    @classmethod
    def of(cls, size: Size, tile: Size, overlap: int) -> "TileGrid":
        """Tiles of this size, or as large as the picture. Raises InvalidRequest for too many."""
        tile = Size(*(min(side, whole) // 8 * 8 for side, whole in zip(tile, size, strict=True)))
        if overlap >= min(tile):
            raise InvalidRequest(f"script_args: overlap is {overlap}, the tiles are {tile}", "script_args")
        grid = cls(size, tile, overlap)
        count = grid._count(size.width, tile.width) * grid._count(size.height, tile.height)
        if count > _MOST_TILES:
            message = f"script_args: {size} takes {count} tiles of {tile}, at most {_MOST_TILES}"
            raise InvalidRequest(message, "script_args")
        return grid

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Left and top of each tile, row by row."""
        columns, rows = (self._starts(*sides) for sides in zip(self.size, self.tile, strict=True))
        return [(left, top) for top, left in product(rows, columns)]

    def _count(self, whole: int, tile: int) -> int:
        return max(1, ceil((whole - self.overlap) / (tile - self.overlap)))

    def _starts(self, whole: int, tile: int) -> list[int]:
        count = self._count(whole, tile)
        between = (whole - tile) / (count - 1) if count > 1 else 0.0
        return [min(int(number * between), whole - tile) for number in range(count)]

    def parts(self, picture: Pixels) -> list[str]:
        """The tiles of a picture of the grid's size, as PNG files in base64."""
        width, height = self.tile
        return [_png(Image.fromarray(picture[top : top + height, left : left + width])) for left, top in self.corners]

    def combined(self, tiles: Sequence[Pixels]) -> Pixels:
        """The picture of these tiles; each fades in over the ones before it."""
        width, height = self.tile
        picture = np.zeros((self.size.height, self.size.width, 3), np.float32)
        row = picture.copy()
        corners = self.corners
        for index, ((left, top), tile) in enumerate(zip(corners, tiles, strict=True)):
            part = row[top : top + height, left : left + width]
            part[:] = _faded(part, tile, self.overlap if left else 0, axis=1)
            if index + 1 == len(corners) or corners[index + 1][1] != top:  # the row is whole
                rows = slice(top, top + height)
                picture[rows] = _faded(picture[rows], row[rows], self.overlap if top else 0, axis=0)
        return picture.round().clip(0, 255).astype(np.uint8)


def with_infotext(picture: Pixels, infotext: str) -> bytes:
    """A PNG file with its parameters."""
    texts, file = PngInfo(), io.BytesIO()
    texts.add_text("parameters", infotext)
    texts.add_itxt(XMP_CHUNK, xmp_packet(COMPOSITE))
    Image.fromarray(picture).save(file, "PNG", compress_level=1, pnginfo=texts)
    return file.getvalue()


def _faded(before: np.ndarray, after: np.ndarray, over: int, axis: int) -> np.ndarray:
    """`after`, which fades in over its first pixels along an axis."""
    weights = np.ones(after.shape[axis], np.float32)
    weights[:over] = np.arange(over, dtype=np.float32) / max(1, over)
    weights = weights[None, :, None] if axis == 1 else weights[:, None, None]
    mixed: np.ndarray = before * (1 - weights) + after * weights
    return mixed


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()
