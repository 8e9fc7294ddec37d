"""What a client sent as `image` and `mask`: base64 or a data URL -> pixels, bounded before anything is decoded.

PNG, JPEG and WebP only, turned as their EXIF says, without transparency. Nothing is ever fetched. Knows nothing of jobs
or HTTP, nor of what becomes of the pixels (inpainting.py). Decoding takes tens of milliseconds: call it in a thread.
"""

import base64
import binascii
import hashlib
import io
import re
import struct
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from deployments.engine.errors import InvalidRequest
from deployments.engine.request import Pixels
from serve_app.png_rows import has_all_rows

FORMATS = ("PNG", "JPEG", "WEBP")

_DATA_URL = re.compile(r"data:[\w.+/-]{0,64}(?:;[\w=.+-]{1,64})*;base64,", re.ASCII | re.IGNORECASE)
# line breaks, as MIME's base64 has them
_WHITESPACE = re.compile(r"[\r\n\t ]+")

# what Pillow raises for files that are broken, or lie about themselves
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
    """A client's picture. pixels: uint8, (height, width, 3); of a mask (height, width), white is to be painted.

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
    """The picture that a generation begins with, and its mask where there is one: both of one size."""

    image: SourceImage
    mask: SourceImage | None


def read_source(image: str, mask: str | None, max_pixels: int) -> Source:
    """Both decoded. Raises InvalidRequest for what is no such picture, or larger than `max_pixels`."""
    picture = _read("image", image, max_pixels, "RGB")
    if mask is None:
        return Source(picture, None)
    masking = _read("mask", mask, max_pixels, "L")
    if (masking.width, masking.height) != (picture.width, picture.height):
        raise InvalidRequest(
            f"mask is {masking.width}x{masking.height}, image is {picture.width}x{picture.height}: "
            "they must be of one size",
            "mask",
        )
    return Source(picture, masking)


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
        raise InvalidRequest(f"{field} is no base64", field) from None
    if not data:
        raise InvalidRequest(f"{field} is empty", field)
    return data


def _read(field: str, text: str, max_pixels: int, mode: str) -> SourceImage:
    data = decoded(field, text)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            pixels = image.width * image.height
            if pixels <= max_pixels:
                image.load()
                if image.format == "PNG" and not has_all_rows(data):
                    raise EOFError
                pixels_of = np.asarray(_flat(ImageOps.exif_transpose(image), mode))
                return SourceImage(np.ascontiguousarray(pixels_of), hashlib.sha256(data).hexdigest())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InvalidRequest(f"{field} has more than {max_pixels} pixels", field) from None
    except _BROKEN:
        raise InvalidRequest(f"{field} is no PNG, JPEG or WebP file that can be read", field) from None
    raise InvalidRequest(f"{field} has {pixels} pixels, at most {max_pixels}", field)


def _flat(image: Image.Image, mode: str) -> Image.Image:
    """As RGB or L, without transparency: a picture's is white, a mask's black, so that nothing is painted there."""
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would cut off rather than scale
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white" if mode == "RGB" else "black")
        image = Image.alpha_composite(ground, image)
    return image.convert(mode)
