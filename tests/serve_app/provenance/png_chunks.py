"""The chunks of PNG files, which hold their credentials apart from all else."""

import io
import struct
import zlib

CREDENTIALS = b"caBX"
"""The name of the chunk that C2PA has."""


def chunks_of(png: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG file by name."""
    chunks, at = [], 8
    while at < len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        chunks.append((png[at + 4 : at + 8], png[at + 8 : at + 8 + length]))
        at += 12 + length
    return chunks


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    file = io.BytesIO()
    file.write(b"\x89PNG\r\n\x1a\n")
    for name, content in chunks:
        file.write(struct.pack(">I", len(content)) + name + content)
        file.write(struct.pack(">I", zlib.crc32(name + content)))
    return file.getvalue()


def with_credentials(png: bytes, credentials: bytes, times: int = 1) -> bytes:
    """A PNG file with these bytes for credentials."""
    chunks = [chunk for chunk in chunks_of(png) if chunk[0] != CREDENTIALS]
    return png_of([chunks[0], *[(CREDENTIALS, credentials)] * times, *chunks[1:]])


def without_credentials(png: bytes) -> bytes:
    """A PNG file as it was before it was signed."""
    return png_of([chunk for chunk in chunks_of(png) if chunk[0] != CREDENTIALS])


def credentials_of(png: bytes) -> bytes:
    return next(content for name, content in chunks_of(png) if name == CREDENTIALS)
