"""JSON lines (https://jsonlines.org) of a file that comes in parts, bounded while they are read."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import NamedTuple

from serve_app.errors import BatchRefused

_BOM = b"\xef\xbb\xbf"


class RawLine(NamedTuple):
    """A line that isn't blank: its number from 1, its place in the file in bytes, and its text."""

    number: int
    start: int
    text: bytes


async def json_lines(parts: AsyncIterator[bytes], max_bytes: int) -> AsyncGenerator[RawLine, None]:
    """The lines of a file. Raises BatchRefused at one that is longer than `max_bytes`."""
    buffer = bytearray()
    number = start = 0
    async for part in parts:
        searched = len(buffer)
        buffer += part
        begin = 0
        while (end := buffer.find(b"\n", max(begin, searched))) >= 0:
            number += 1
            text = bytes(buffer[begin:end])
            _check_length(number, len(text), max_bytes)
            if text.removeprefix(_BOM).strip():
                yield RawLine(number, start + begin, text)
            begin = end + 1
        del buffer[:begin]
        start += begin
        _check_length(number + 1, len(buffer), max_bytes)
    if buffer.removeprefix(_BOM).strip():
        yield RawLine(number + 1, start, bytes(buffer))


def _check_length(number: int, length: int, max_bytes: int) -> None:
    if length > max_bytes:
        message = f"line {number} is longer than {max_bytes} bytes"
        raise BatchRefused.of({"code": "line_too_long", "message": message, "line": number})
