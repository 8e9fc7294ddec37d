"""Pictures as a client sends them."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image


def gradient(width: int, height: int) -> np.ndarray:
    """No two neighbours alike: uint8 (height, width, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 5 % 256, y * 5 % 256, (x + y) % 256], axis=-1).astype(np.uint8)


def square(width: int, height: int, left: int, top: int, side: int) -> np.ndarray:
    """A mask, white in a square: uint8 (height, width)."""
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + side, left : left + side] = 255
    return mask


def file_of(picture: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(file, kind, **options)
    return file.getvalue()


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def sent(picture: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> str:
    """As base64."""
    return encoded(file_of(picture, kind, **options))


def received(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))
