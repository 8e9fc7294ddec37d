"""Reads AUTOMATIC1111's infotext, the text with which images say how they were made: text -> "Key" -> "value".

    prompt, on one or more lines
    Negative prompt: on one or more lines
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, "a value, with a comma" is a JSON string

What writes it is metadata.py. Safe on text from anywhere: linear, nothing raised for what is in it.
"""

import io
import json
import re
import struct

from PIL import ExifTags, Image

_NEGATIVE = "Negative prompt:"
_PAIR = re.compile(r'([\w][\w \-/]{0,63}):\s*("(?:[^"\\]|\\.)*+"|[^,]*)(?:,|\Z)', re.ASCII | re.DOTALL)
_SIZE = re.compile(r"([0-9]{1,6})x([0-9]{1,6})", re.ASCII)

# pairs from which a last line counts as parameters: one or two may just be how a prompt ends
_LEAST_PAIRS = 3

_MAX_PIXELS = 64_000_000


def parse_infotext(text: str) -> dict[str, str]:
    """Its parameters by A1111's keys. "Prompt" and "Negative prompt" are always there; a size is also split in two."""
    *lines, last = text.strip().split("\n")
    pairs = _PAIR.findall(last)
    if len(pairs) < _LEAST_PAIRS:
        lines, pairs = [*lines, last], []
    start = next((number for number, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[start:]).removeprefix(_NEGATIVE)
    found = {"Prompt": "\n".join(lines[:start]).strip(), "Negative prompt": negative.strip()}
    for key, value in pairs:
        found[key] = _unquoted(value.strip())
        size = _SIZE.fullmatch(value.strip())
        if size is not None:
            found[f"{key}-1"], found[f"{key}-2"] = size.groups()
    return found


def texts_of(data: bytes) -> tuple[str, dict[str, str]] | None:
    """The infotext in an image file ("" where there is none), and its other texts; None where it can't be read.

    PNG, JPEG and WebP; the pixels aren't decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > _MAX_PIXELS:
                return None
            texts = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
            comment = None
            # a PNG's EXIF may stand behind its pixels: to look for it there, Pillow would unpack them all
            if image.format != "PNG" or "exif" in image.info:
                comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error):  # what Pillow raises for broken files
        return None
    infotext = texts.pop("parameters", None)
    if infotext is None and isinstance(comment, bytes):
        infotext = _comment(comment)
    return infotext or "", texts


def _comment(comment: bytes) -> str:
    """EXIF's UserComment: eight bytes say how the rest is written."""
    code, text = comment[:8], comment[8:]
    if code == b"UNICODE\0":
        return text.decode("utf-16-be", errors="replace")
    return text.decode("utf-8", errors="replace") if code in (b"ASCII\0\0\0", bytes(8)) else ""


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
