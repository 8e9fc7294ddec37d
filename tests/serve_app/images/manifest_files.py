"""Reads the manifest out of an image file, as documented in docs/api.md."""

import html
import io
import re

from PIL import Image

from serve_app.schemas.manifest import Manifest


def read_manifest(data: bytes) -> Manifest | None:
    """None where there is none. The pixels aren't decoded."""
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
        text = image.info.get("darkroom") if image.format == "PNG" else _from_xmp(image.info.get("xmp", b""))
    return None if text is None else Manifest.model_validate_json(text)


def _from_xmp(packet: bytes) -> str | None:
    match = re.search(rb"<darkroom:manifest>([^<]*)</darkroom:manifest>", packet)
    return None if match is None else html.unescape(match[1].decode())
