"""Whole JPEG files and ones that lie about their rows; encoders differ in scans, sampling, colours and restarts."""

import io
import itertools
import struct

import numpy as np
import pytest
from PIL import Image

from serve_app.images.jpeg_rows import has_all_rows
from tests.serve_app.images.pictures import file_of, gradient

SIDE = 64


def whole(data: bytes) -> bool:
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        image.load()
        return has_all_rows(data, image)


def claiming(data: bytes, rows: int) -> bytes:
    """The same file, which says that it has so many rows."""
    frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
    return data[:frame] + struct.pack(">H", rows) + data[frame + 2 :]


PICTURES = {
    "gradient": gradient(SIDE, SIDE),
    "noise": np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8),
    "grey below": np.concatenate([gradient(SIDE, SIDE // 2), np.full((SIDE // 2, SIDE, 3), 128, np.uint8)]),
}
KINDS = list(itertools.product((False, True), ("RGB", "L", "CMYK"), (0, 1)))


@pytest.mark.parametrize(("progressive", "mode", "restarts"), KINDS)
def test_rows_that_are_promised_and_missing_are_found(progressive: bool, mode: str, restarts: int) -> None:
    for pixels in PICTURES.values():
        for subsampling in (0, 2) if mode == "RGB" else (0,):
            data = file_of(
                Image.fromarray(pixels).convert(mode),
                "JPEG",
                progressive=progressive,
                subsampling=subsampling,
                restart_marker_rows=restarts,
            )
            assert whole(data)
            assert not whole(claiming(data, SIDE + 8))
            assert not whole(claiming(data, 10 * SIDE))


def test_a_grey_picture_is_whole() -> None:
    grey = file_of(Image.new("RGB", (SIDE, SIDE), (128, 128, 128)), "JPEG")
    assert whole(grey)
    assert not whole(claiming(grey, 2 * SIDE))


def test_what_stands_around_the_picture_is_left_alone() -> None:
    """A preview in its EXIF data, bytes that fill up, another picture behind it."""
    exif = Image.Exif()
    exif[0x010E] = "\xff\xda" * 20
    data = file_of(gradient(SIDE, SIDE), "JPEG", exif=exif)
    scan = data.index(b"\xff\xda", data.index(b"\xff\xc4"))
    padded = data[:scan] + b"\xff\xff" + data[scan:] + data + b"text"
    assert whole(padded)
    assert not whole(claiming(padded, 2 * SIDE))
    both = io.BytesIO()
    first, second = (Image.fromarray(PICTURES[name]) for name in ("gradient", "noise"))
    first.save(both, "MPO", save_all=True, append_images=[second])
    assert whole(both.getvalue())
