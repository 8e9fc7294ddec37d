"""Decodes clients' pictures and masks, as base64 or data URLs; their size is checked first.

PNG, JPEG and WebP only, turned as their EXIF says, without transparency. Nothing is ever fetched. Decoding takes tens
of milliseconds: call it in a thread.
"""

import base64
import binascii
import hashlib
import io
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageFilter, ImageOps, PngImagePlugin

from deployments.engine.errors import InvalidRequest
from deployments.engine.types import Pixels

FORMATS = ("PNG", "JPEG", "WEBP")

# of a PNG's unpacked colour profile, or one of its texts: printers' profiles exceed the 1 MiB that Pillow allows
PngImagePlugin.MAX_TEXT_CHUNK = 16 << 20

# Pillow's names: MPO is several pictures in one JPEG file, of which the first is read
_JPEG = ("JPEG", "MPO")

_DATA_URL = re.compile(r"data:[\w.+/-]{0,64}(?:;[\w=.+-]{1,64})*;base64,", re.ASCII | re.IGNORECASE)
# alpha above which a mask is painted
_HALF = 128

# line breaks, as MIME's base64 has them
_WHITESPACE = re.compile(r"[\r\n\t ]+")

# of a JPEG: encoders write about ten; each is a pass over all pixels that ten bytes can cause
_MOST_SCANS = 100
_START_OF_SCAN = b"\xff\xda"

# what files of the three kinds begin with
_SIGNATURES = re.compile(rb"\x89PNG\r\n|\xff\xd8\xff|RIFF....WEBP", re.DOTALL)

_TYPES = {b"\x89": "image/png", b"\xff": "image/jpeg", b"R": "image/webp"}

# EXIF's orientations of a picture whose width is its height
_ON_THEIR_SIDE = (5, 6, 7, 8)

# what Pillow raises for broken files
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    KeyError,
    IndexError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


@dataclass(frozen=True, slots=True)
class SourceImage:
    """A client's picture.

    Attributes:
        pixels: (height, width, 3), uint8; for a mask (height, width), white is painted anew.
        sha256: of the file as it came, hex.
    """

    pixels: Pixels
    sha256: str

    @property
    def width(self) -> int:
        """Pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self.pixels.shape[0])


@dataclass(frozen=True, slots=True)
class Source:
    """The picture that a generation begins with, and its mask of the same size, if there is one."""

    image: SourceImage
    mask: SourceImage | None


def read_source(image: str, mask: str | None, max_pixels: int) -> Source:
    """Decode picture and mask. Raises InvalidRequest for what is no picture, or has more than `max_pixels`."""
    picture = read_picture("image", image, max_pixels)
    if mask is None:
        return Source(picture, None)
    masking = read_mask("mask", mask, max_pixels)
    if (masking.width, masking.height) != (picture.width, picture.height):
        raise InvalidRequest(
            f"mask is {masking.width}x{masking.height}, image is {picture.width}x{picture.height}: "
            "both must have the same size",
            "mask",
        )
    return Source(picture, masking)


def read_picture(field: str, text: str, max_pixels: int) -> SourceImage:
    """Decode a picture. Raises InvalidRequest, naming `field`, as `read_source` does."""
    return read_file(field, decoded(field, text), max_pixels)


def read_mask(field: str, text: str, max_pixels: int) -> SourceImage:
    """Decode a mask. Raises InvalidRequest, naming `field`, as `read_source` does."""
    return read_file(field, decoded(field, text), max_pixels, "L")


def picture_size(field: str, text: str, max_pixels: int) -> tuple[int, int]:
    """A picture's width and height, turned as its EXIF says, without decoding it.

    EXIF behind a PNG's pixels is ignored: Pillow would have to unpack them all to find it.
    Raises InvalidRequest, naming `field`, for what is no picture, or has more than `max_pixels`.
    """
    with _recognised(field, decoded(field, text), max_pixels) as image:
        readable = image.format != "PNG" or "exif" in image.info
        turned = readable and image.getexif().get(ExifTags.Base.Orientation) in _ON_THEIR_SIDE
        return (image.height, image.width) if turned else image.size


def decoded(field: str, text: str) -> bytes:
    """The bytes behind base64 or a data URL. Raises InvalidRequest, naming `field`."""
    prefix = _DATA_URL.match(text)
    if prefix is not None:
        text = text[prefix.end() :]
    elif text[:64].lower().startswith(("http:", "https:", "file:", "ftp:", "data:")):
        raise InvalidRequest(f"{field} must be base64 or a base64 data URL: nothing is fetched from a URL", field)
    try:
        data = base64.b64decode(_WHITESPACE.sub("", text), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"{field} isn't base64", field) from None
    if not data:
        raise InvalidRequest(f"{field} is empty", field)
    return data


def is_picture(text: str) -> bool:
    """Whether a text is a PNG, JPEG or WebP file as base64 or a data URL, by what the file begins with."""
    prefix = _DATA_URL.match(text)
    start = _WHITESPACE.sub("", text[0 if prefix is None else prefix.end() :][:64])[:16]
    try:
        return _SIGNATURES.match(base64.b64decode(start, validate=True)) is not None
    except ValueError:
        return False


def content_type_of(field: str, data: bytes) -> str:
    """The MIME type of a picture's file, by what it begins with. Raises InvalidRequest, naming `field`, for another."""
    if _SIGNATURES.match(data) is None:
        raise InvalidRequest(f"{field} isn't a PNG, JPEG or WebP file", field)
    return _TYPES[data[:1]]


def check_readable(field: str, data: bytes) -> None:
    """Raise InvalidRequest, naming `field`, for a file that only begins as a picture does; pixels aren't decoded."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS):
            return
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return  # a picture, if a large one
    except _BROKEN:
        raise InvalidRequest(f"{field} isn't a readable PNG, JPEG or WebP file", field) from None


def is_plain(field: str, text: str, max_pixels: int) -> bool:
    """Whether a mask is all of one brightness, and so says nothing. Raises InvalidRequest as `read_source` does."""
    pixels = read_mask(field, text, max_pixels).pixels
    return bool(pixels.min() == pixels.max())


def mask_of_transparency(field: str, data: bytes, max_pixels: int) -> bytes:
    """A mask as a PNG file: white where the picture in the file `data` is transparent.

    Raises InvalidRequest, naming `field`, also for a picture without transparency.
    """
    with _opened(field, data, max_pixels) as image:
        if not image.has_transparency_data:
            raise InvalidRequest(f"{field} has no transparency: what is to be painted must be transparent", field)
        opaque = ImageOps.exif_transpose(image).convert("RGBA").getchannel("A")
    file = io.BytesIO()
    ImageOps.invert(opaque).save(file, "PNG", compress_level=1)
    return file.getvalue()


def drawn_mask(
    field: str, data: bytes, size: tuple[int, int], max_pixels: int, blur: tuple[int, int] = (0, 0)
) -> bytes:
    """A mask as A1111 takes it, as a PNG file: white is where it isn't transparent, or bright where all is opaque.

    Args:
        size: what it is brought to, width and height in pixels.
        blur: radii across and down in pixels of the mask, by which it is blurred before.

    Raises:
        InvalidRequest: naming `field`.
    """
    with _opened(field, data, max_pixels) as image:
        turned = ImageOps.exif_transpose(image)
        opaque = turned.convert("RGBA").getchannel("A") if turned.has_transparency_data else None
        if opaque is not None and opaque.getextrema() != (255, 255):
            mask = opaque.point(lambda alpha: 255 if alpha > _HALF else 0)
        else:
            mask = _flat(turned, "L")
    if any(blur):
        mask = mask.filter(ImageFilter.GaussianBlur(blur))
    if mask.size != size:
        mask = mask.resize(size, Image.Resampling.LANCZOS)
    file = io.BytesIO()
    mask.save(file, "PNG", compress_level=1)
    return file.getvalue()


def read_file(field: str, data: bytes, max_pixels: int, mode: str = "RGB") -> SourceImage:
    """Decode a picture's file, or a mask's (`mode` L). Raises InvalidRequest, naming `field`, as `read_source` does."""
    with _opened(field, data, max_pixels) as image:
        pixels = np.asarray(_flat(ImageOps.exif_transpose(image), mode))
        return SourceImage(np.ascontiguousarray(pixels), hashlib.sha256(data).hexdigest())


@contextmanager
def _opened(field: str, data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """The picture in a file, loaded. Raises InvalidRequest as `read_source` does."""
    with _recognised(field, data, max_pixels) as image:
        if image.format in _JPEG and data.count(_START_OF_SCAN) > _MOST_SCANS:
            raise EOFError
        image.load()
        yield image


@contextmanager
def _recognised(field: str, data: bytes, max_pixels: int) -> Iterator[Image.Image]:
    """The picture in a file, not yet loaded. Raises InvalidRequest, also for errors of Pillow in the block."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            pixels = image.width * image.height
            if pixels > max_pixels:
                raise InvalidRequest(f"{field} has {pixels} pixels, at most {max_pixels}", field)
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidRequest(f"{field} has more than {max_pixels} pixels", field) from None
    except _BROKEN:
        raise InvalidRequest(f"{field} isn't a readable PNG, JPEG or WebP file", field) from None


def _flat(image: Image.Image, mode: str) -> Image.Image:
    """As RGB or L without transparency, which becomes white in a picture, black (not painted) in a mask."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would cut off rather than scale
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white" if mode == "RGB" else "black")
        image = Image.alpha_composite(ground, image)
    return image.convert(mode)
