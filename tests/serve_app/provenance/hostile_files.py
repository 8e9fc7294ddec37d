"""Image files whose credentials are broken or made to hurt whoever reads them; none may be believed."""

import random
import struct
from collections.abc import Iterator

from serve_app.images.encode import encode_image
from tests.serve_app.images.test_encode import manifest, picture
from tests.serve_app.provenance.png_chunks import CREDENTIALS, credentials_of, with_credentials

PNG = "image/png"
_PIXELS = b"IDAT"


def box(content: bytes, size: int | None = None, kind: bytes = b"jumb") -> bytes:
    """A box of JUMBF, of its own size or one that lies."""
    return struct.pack(">I", len(content) + 8 if size is None else size) + kind + content


def nested(depth: int) -> bytes:
    description = box(b"c2pa" + bytes(12) + b"\x03c2pa\0", kind=b"jumd")
    inner = b""
    for _ in range(depth):
        inner = box(description + inner)
    return inner


def hostile(signed: bytes) -> Iterator[tuple[str, bytes]]:
    """Broken versions of a signed PNG file, by name."""
    true = credentials_of(signed)
    other = encode_image(picture(64, 64), "png", manifest(seed=1))
    yield "a pixel changed", flipped(signed, signed.index(_PIXELS) + 20)
    yield "the manifest of another image", with_credentials(other, true)
    yield "a text changed", signed.replace(b"a large red circle", b"a large red square", 1)
    # (not at 0.9: there are zeros, up to the size that was foreseen for the signature, which C2PA leaves to anybody)
    for number, part in enumerate((0.02, 0.1, 0.2, 0.3, 0.5, 0.7, 0.99)):
        yield (
            f"a byte of the manifest changed, {number}",
            with_credentials(signed, bytes(flipped(true, int(len(true) * part)))),
        )
    for number, part in enumerate((0.01, 0.25, 0.5, 0.75, 0.999)):
        yield f"cut off, {number}", with_credentials(signed, true[: int(len(true) * part)])
    yield "empty", with_credentials(signed, b"")
    yield "one byte", with_credentials(signed, b"\0")
    yield "noise", with_credentials(signed, random.Random(0).randbytes(5_000))
    yield "a box of 4 GiB", with_credentials(signed, box(b"", 0xFFFF_FFFF))
    yield "a box of more than 64 bits hold", with_credentials(signed, struct.pack(">I4sQ", 1, b"jumb", 2**64 - 1))
    yield "a box without size", with_credentials(signed, box(true[8:], 0))
    yield "a box smaller than its header", with_credentials(signed, box(true[8:], 4))
    yield "1,000 boxes in each other", with_credentials(signed, nested(1_000))
    yield "20,000 boxes in each other", with_credentials(signed, nested(20_000))
    yield "100,000 empty boxes", with_credentials(signed, box(box(b"", kind=b"free") * 100_000))
    yield "the manifest a thousand times", with_credentials(signed, true * 1_000)
    yield "two manifests", with_credentials(signed, true, times=2)
    yield "a manifest of zeros", with_credentials(signed, bytes(4 << 20))
    yield (
        "a number of CBOR that promises 2**60 items",
        with_credentials(signed, true.replace(b"gactions", b"\x9b\x0f" + b"\xff" * 6, 1)),
    )
    yield "names swapped", with_credentials(signed, true.replace(b"c2pa.signature", b"c2pa.signaturf"))
    yield "an assertion renamed", with_credentials(signed, true.replace(b"darkroom.generation", b"darkroom.generatiom"))
    yield "a chunk longer than the file", signed[:33] + struct.pack(">I", 0x7FFF_FFFF) + CREDENTIALS + true
    yield "the file cut off", signed[: len(signed) // 2]


def flipped(data: bytes, at: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1
    return bytes(changed)
