"""PNG files with all their rows, and with fewer."""

import io
import struct
import zlib

import pytest
from PIL import Image

from serve_app.images.png_rows import has_all_rows
from tests.serve_app.images.image_bombs import chunk, png
from tests.serve_app.images.pictures import file_of, gradient


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (13, 7), (64, 300)])
def test_whole_files(mode: str, size: tuple[int, int]) -> None:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    assert has_all_rows(file.getvalue())


@pytest.mark.parametrize(("size", "length"), [((8, 8), 15 + 64 * 3), ((1, 1), 1 + 3), ((5, 3), 3 + 3 * 15 + 4)])
def test_interlaced_files(size: tuple[int, int], length: int) -> None:
    rows = zlib.compress(bytes(length))
    assert has_all_rows(png(*size, chunk(b"IDAT", rows), interlaced=1))
    assert not has_all_rows(png(*size, chunk(b"IDAT", zlib.compress(bytes(length - 1))), interlaced=1))


def test_a_row_less_and_none_at_all() -> None:
    rows = bytes(9 * (1 + 3 * 10))
    halves = zlib.compress(rows)[:12], zlib.compress(rows)[12:]
    assert has_all_rows(png(10, 9, chunk(b"IDAT", halves[0]), chunk(b"tEXt", b"a\0b"), chunk(b"IDAT", halves[1])))
    assert not has_all_rows(png(10, 10, chunk(b"IDAT", zlib.compress(rows))))
    assert not has_all_rows(png(10, 9, chunk(b"IDAT", zlib.compress(rows)[:-8])))
    assert not has_all_rows(png(10, 9, chunk(b"IDAT", b"\xff" * 20)))
    assert not has_all_rows(png(10, 9))


def test_a_file_that_says_it_is_higher() -> None:
    honest = file_of(gradient(64, 64))
    header = b"IHDR" + honest[16:20] + struct.pack(">I", 65) + honest[24:29]
    assert has_all_rows(honest)
    assert not has_all_rows(honest[:12] + header + struct.pack(">I", zlib.crc32(header)) + honest[33:])
