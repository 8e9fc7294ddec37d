"""A request, and a picture as a file. Needs Pillow alone."""

import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

Request = Mapping[str, Any]
"""prompt, seed, steps, guidance_scale, width, height, sampler: see benchmarks.service_requests.ImageRequest."""


def png(picture: Image.Image) -> bytes:
    """The picture's file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
