"""Image files that nobody should send: a corpus for whatever reads image bytes from outside. Names -> files.

Each is small enough for a request's body; what they promise, or unpack to, is not.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from functools import cache

from PIL import ExifTags, Image, PngImagePlugin

MAGIC = b"\x89PNG\r\n\x1a\n"
TEXT = "a cat\nSteps: 20, Sampler: Euler a, Seed: 1, Size: 8x8"

# what a body of a fifth of a megabyte unpacks to
_UNPACKED = 200 << 20


def corpus() -> dict[str, bytes]:
    """All of them."""
    return dict(
        one for family in (_broken, _disguised, _polyglots, _chunks, _sizes, _frames, _exif_data) for one in family()
    )


def good() -> dict[str, bytes]:
    """An honest file of each kind that is read, with a text in it."""
    made = {}
    picture = Image.effect_noise((64, 64), 60).convert("RGB")
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + TEXT.encode("utf-16-be")
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", TEXT)
    for kind, extra in {"PNG": {"pnginfo": texts}, "JPEG": {"exif": exif}, "WEBP": {"exif": exif}}.items():
        file = io.BytesIO()
        picture.save(file, kind, **extra)
        made[kind] = file.getvalue()
    return made


def chunk(kind: bytes, data: bytes, length: int | None = None, crc: int | None = None) -> bytes:
    """A PNG chunk, which may lie about its length and its checksum."""
    declared = struct.pack(">I", len(data) if length is None else length)
    return declared + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)


def png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2, interlaced: int = 0) -> bytes:
    """A PNG with these chunks after its header."""
    header = struct.pack(">IIBBBBB", width & 0xFFFFFFFF, height & 0xFFFFFFFF, depth, colour, 0, 0, interlaced)
    return MAGIC + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


@cache
def _zeros(length: int) -> bytes:
    """Nothing but zeros, deflated."""
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    return b"".join(packer.compress(block) for _ in range(length >> 20)) + packer.flush()


def _broken() -> Iterator[tuple[str, bytes]]:
    for kind, data in good().items():
        for part in range(25):
            cut = len(data) * part // 25
            yield f"{kind} cut at {cut}", data[:cut]
            # the first bytes are where the structure is
            place = part * 3 if part < 15 else cut
            yield f"{kind} flipped at {place}", data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def _others() -> Iterator[tuple[str, bytes]]:
    for kind in ("GIF", "BMP", "ICO", "TIFF", "PPM", "TGA", "PCX", "JPEG2000", "AVIF", "PDF", "EPS", "DDS", "ICNS"):
        file = io.BytesIO()
        Image.new("RGB", (64, 64)).save(file, kind)
        yield kind, file.getvalue()
    yield "PSD", b"8BPS\x00\x01" + bytes(6) + struct.pack(">HIIHH", 3, 30_000, 30_000, 8, 3) + bytes(64)
    yield "SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    yield "XBM", b"#define a_width 65535\n#define a_height 65535\nstatic char a_bits[] = {0x00};"
    yield "FITS", b"SIMPLE  =                    T / " + b" " * 2880
    yield "HTML", b"<!doctype html><script>alert(1)</script>"
    yield "ZIP", b"PK\x03\x04" + bytes(60)
    yield "ELF", b"\x7fELF" + bytes(60)
    yield "pickle", b"\x80\x04cos\nsystem\n(S'true'\ntR."
    yield "nothing", b""
    yield "zeros", bytes(4096)


def _disguised() -> Iterator[tuple[str, bytes]]:
    for kind, data in _others():
        yield kind, data
        yield f"{kind} after PNG's magic", MAGIC + data
        yield f"{kind} in RIFF WEBP", b"RIFF" + struct.pack("<I", len(data) + 4) + b"WEBP" + data


def _polyglots() -> Iterator[tuple[str, bytes]]:
    for kind, data in good().items():
        yield f"{kind} and a zip", data + b"PK\x05\x06" + bytes(18)
        yield f"{kind} and a page", data + b"<script>alert(1)</script>"
        yield f"a page and {kind}", b"<script>alert(1)</script>" + data
        for other, more in good().items():
            yield f"{kind} and {other}", data + more


def _chunks() -> Iterator[tuple[str, bytes]]:
    """PNG's chunks: what unpacks to too much, what says too much of itself, too many of them."""
    bomb = _zeros(_UNPACKED)
    packed = {
        b"zTXt": b"parameters\0\0" + bomb,
        b"iTXt": b"parameters\0\1\0\0\0" + bomb,
        b"iCCP": b"profile\0\0" + bomb,
        b"eXIf": bomb,
        b"tEXt": b"parameters\0" + b"a" * 500_000,
    }
    for kind, data in packed.items():
        yield f"{kind.decode()} bomb", png(8, 8, chunk(kind, data))
    small = _zeros(1 << 20)
    for kind, head in {b"zTXt": b"key\0\0", b"iTXt": b"key\0\1\0\0\0"}.items():
        yield f"300 {kind.decode()} of 1 MiB", png(8, 8, *[chunk(kind, head + small)] * 300)
        yield (
            f"5,000 {kind.decode()}",
            png(8, 8, *(chunk(kind, head.replace(b"key", b"k%d" % n)) for n in range(5_000))),
        )
    yield "50,000 empty chunks", png(8, 8, *[chunk(b"abCd", b"")] * 50_000)
    for kind in (
        b"IHDR",
        b"PLTE",
        b"IDAT",
        b"tEXt",
        b"zTXt",
        b"iTXt",
        b"iCCP",
        b"eXIf",
        b"pHYs",
        b"tRNS",
        b"acTL",
        b"fcTL",
    ):
        for length in (0xFFFFFFFF, 0x7FFFFFFF, 1 << 20):
            yield f"{kind.decode()} of {length} bytes, it says", png(8, 8, chunk(kind, bytes(26), length))
        yield f"{kind.decode()} without content", png(8, 8, chunk(kind, b""))
        yield f"{kind.decode()} with a wrong sum", png(8, 8, chunk(kind, bytes(26), crc=0))


def _sizes() -> Iterator[tuple[str, bytes]]:
    pixels = chunk(b"IDAT", _zeros(_UNPACKED))
    for width, height in (
        (0, 0), (1, 0x7FFFFFFF), (0x7FFFFFFF, 1), (0x7FFFFFFF, 0x7FFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (65_535, 65_535),
        (20_000, 20_000), (8_000, 8_000), (1, 64_000_000),
    ):  # fmt: skip
        for colour, depth in ((0, 1), (2, 8), (2, 16), (3, 8), (6, 16)):
            for interlaced in (0, 1):
                name = f"{width}x{height} PNG, {depth} bits of colour {colour}, interlaced {interlaced}"
                yield name, png(width, height, pixels, colour=colour, depth=depth, interlaced=interlaced)
    jpeg = good()["JPEG"]
    frame = jpeg.index(b"\xff\xc0") + 5
    for side in (65_500, 65_535, 8_000, 0):
        yield f"JPEG of {side}²", jpeg[:frame] + struct.pack(">HH", side, side) + jpeg[frame + 4 :]
        lossless = struct.pack("<I", (side & 0x3FFF) | ((side & 0x3FFF) << 14))
        yield f"lossless WebP of {side}²", _riff(b"VP8L", b"\x2f" + lossless + bytes(64))
        lossy = b"\x10\x02\x00\x9d\x01\x2a" + struct.pack("<HH", side & 0x3FFF, side & 0x3FFF) + bytes(64)
        yield f"lossy WebP of {side}²", _riff(b"VP8 ", lossy)
    for side in (0, 8_000, 16_383, 65_535, (1 << 24) - 1):
        for flags in (0, 0x02, 0x2C):
            yield f"WebP canvas of {side}² with flags {flags}", _canvas(side, flags)


def _riff(kind: bytes, data: bytes) -> bytes:
    body = b"WEBP" + kind + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _canvas(side: int, flags: int) -> bytes:
    """A small WebP on a canvas of another size."""
    small = io.BytesIO()
    Image.new("RGB", (16, 16)).save(small, "WEBP")
    image = small.getvalue()[12:]
    head = bytes([flags, 0, 0, 0]) + (max(side, 1) - 1).to_bytes(3, "little") * 2
    if flags & 0x02:
        frame = bytes(6) + (15).to_bytes(3, "little") * 2 + bytes(4) + image
        image = b"ANIM" + struct.pack("<I", 6) + bytes(6) + b"ANMF" + struct.pack("<I", len(frame)) + frame
    body = b"WEBPVP8X" + struct.pack("<I", len(head)) + head + image
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _frames() -> Iterator[tuple[str, bytes]]:
    control = struct.pack(">IIIIIHHBB", 0, 8, 8, 0, 0, 1, 1, 0, 0)
    for count in (0, 5_000, 0x7FFFFFFF, 0xFFFFFFFF):
        animation = chunk(b"acTL", struct.pack(">II", count, 0))
        frames = (chunk(b"fcTL", control) + chunk(b"fdAT", bytes(4) + zlib.compress(bytes(200))) for _ in range(5_000))
        yield f"APNG of {count} frames", png(8, 8, animation, chunk(b"IDAT", zlib.compress(bytes(200))), *frames)
    for kind in ("WEBP", "PNG"):
        file = io.BytesIO()
        shades = [Image.new("L", (16, 16), shade % 256) for shade in range(1_000)]
        shades[0].save(file, kind, save_all=True, append_images=shades[1:])
        yield f"{kind} of 1,000 frames", file.getvalue()


def _exif_data() -> Iterator[tuple[str, bytes]]:
    """EXIF is a TIFF: entries of (tag, type, count, value or offset), directories that point to others."""

    def tiff(*entries: tuple[int, int, int, int], order: str = "<", after: int = 0, count: int | None = None) -> bytes:
        head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
        head += struct.pack(f"{order}H", len(entries) if count is None else count)
        return (
            head + b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries) + struct.pack(f"{order}I", after)
        )

    pointer, comment = 0x8769, 0x9286
    made = {
        "a directory in itself": tiff((pointer, 4, 1, 8)),
        "next of itself": tiff((1, 3, 1, 1), after=8),
        "a pointer beyond the end": tiff((pointer, 4, 1, 0xFFFFFFF0)),
        "a pointer that is text": tiff((pointer, 2, 4, 0x41414141)),
        "a pointer of several": tiff((pointer, 4, 3, 8)),
        "a pointer that is a fraction": tiff((pointer, 5, 1, 8)),
        "4 billion bytes": tiff((comment, 7, 0xFFFFFFFF, 8)),
        "4 billion fractions": tiff((0x011A, 5, 0xFFFFFFFF, 8)),
        "an unknown type": tiff((comment, 99, 1, 8)),
        "a fraction of zero": tiff((0x011A, 5, 1, 26)) + bytes(8),
        "65,535 entries, it says": tiff(count=0xFFFF),
        "5,000 entries": tiff(*((tag, 3, 1, 1) for tag in range(5_000))),
        "a comment that is a number": tiff((pointer, 4, 1, 26)) + tiff((comment, 3, 1, 8))[8:],
        "big-endian": tiff((pointer, 4, 1, 8), order=">"),
        "no order": b"XX*\0" + bytes(20),
        "BigTIFF": b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) + struct.pack("<Q", 1 << 60),
        "short": b"II*\0",
    }  # fmt: skip
    for name, data in made.items():
        yield f"PNG with EXIF: {name}", png(8, 8, chunk(b"eXIf", data))
        for kind in ("JPEG", "WEBP"):
            file = io.BytesIO()
            try:
                Image.new("RGB", (8, 8)).save(file, kind, exif=b"Exif\0\0" + data)
            except ValueError:  # longer than a segment of JPEG
                continue
            yield f"{kind} with EXIF: {name}", file.getvalue()
