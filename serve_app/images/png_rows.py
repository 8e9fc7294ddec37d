"""Whether a PNG file holds as many rows as its header promises: Pillow paints what is missing black, and says nothing.

Reads the file's chunks and counts what they unpack to, a little at a time; knows nothing of pixels.
"""

import struct
import zlib
from collections.abc import Iterator

_SIGNATURE = 8
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PIECE = 1 << 16

# Adam7: first column and row of each pass, and the steps between
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def has_all_rows(data: bytes) -> bool:
    """`data` is a PNG file that Pillow has opened. False also where what is packed is broken."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, _SIGNATURE + 8)
    bits = depth * _CHANNELS[colour]
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    left = sum(
        _length(-(-(width - column) // across), -(-(height - row) // down), bits)
        for column, row, across, down in passes
    )
    unpacked = zlib.decompressobj()
    try:
        for packed in _packed(data):
            while packed and left > 0:
                left -= len(unpacked.decompress(packed, min(left, _PIECE)))
                packed = unpacked.unconsumed_tail
            if left <= 0:
                return True
    except zlib.error:
        return False
    return False


def _length(width: int, height: int, bits: int) -> int:
    """Bytes of so many rows, each with its filter's byte before it."""
    return height * (1 + (width * bits + 7) // 8) if width > 0 and height > 0 else 0


def _packed(data: bytes) -> Iterator[bytes]:
    at = _SIGNATURE
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            yield data[at + 8 : at + 8 + length]
        at += 12 + length
