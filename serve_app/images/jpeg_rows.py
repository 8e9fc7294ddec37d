"""Whether a JPEG file holds as many rows as its header promises: libjpeg paints what is missing, and says nothing.

It does so where the packed data end before the picture does. So the file is decoded once more, with data that mean
nothing in front of every end: a whole picture is complete before them and stays as it is, one that lacks rows changes.
"""

import io
import re

import numpy as np
from PIL import Image

_MARKER, _FILL, _START_OF_SCAN, _END_OF_IMAGE = 0xFF, 0xFF, 0xDA, 0xD9
# what ends a scan's data: a marker that is neither a stuffed 0xFF nor a restart
_END = re.compile(rb"\xff+(?![\x00\xff\xd0-\xd7])")
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
# codes of every length, none of which is a marker
_CODES = bytes(range(_MARKER))


def has_all_rows(data: bytes, image: Image.Image) -> bool:
    """`data` is a JPEG file, `image` what Pillow has loaded of it."""
    with Image.open(io.BytesIO(_with_nonsense(data)), formats=("JPEG",)) as again:
        return np.array_equal(np.asarray(again), np.asarray(image))


def _with_nonsense(data: bytes) -> bytes:
    """The file with more data before the end of each scan."""
    pieces, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == _MARKER and data[at + 1] != _END_OF_IMAGE:
        if data[at + 1] == _FILL:
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        scan = data[at + 1] == _START_OF_SCAN
        if scan:
            found = _END.search(data, end)
            end = len(data) if found is None else found.start()
        pieces.append(data[at:end])
        if scan:
            pieces.append(_nonsense(data[at:end]))
        at = end
    return b"".join((*pieces, data[at:]))


def _nonsense(scan: bytes) -> bytes:
    """What could go on a scan: codes, and more behind the restarts that would come next."""
    last = max(_RESTART.finditer(scan), key=re.Match.start, default=None)
    number = 0 if last is None else last[1][0] + 1
    return _CODES + b"".join(b"\xff%c" % (0xD0 | (number + more) & 7) + _CODES for more in range(16))
