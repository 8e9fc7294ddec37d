"""Lines are the same however the file is cut into parts."""

from collections.abc import AsyncGenerator

import pytest

from serve_app.batches.jsonl import RawLine, json_lines
from serve_app.errors import BatchRefused


async def lines(text: bytes, size: int, max_bytes: int = 100) -> list[RawLine]:
    async def parts() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(text), size):
            yield text[start : start + size]

    return [line async for line in json_lines(parts(), max_bytes)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_lines_with_their_places(size: int) -> None:
    text = '\ufeff{"a": 1}\r\n\n  \n{"b": "ä"}\n{"c": 3}'.encode()
    found = await lines(text, size)
    assert [line.number for line in found] == [1, 4, 5]
    assert [line.text for line in found] == [text[line.start : line.start + len(line.text)] for line in found]
    assert [line.text.strip() for line in found] == [b'\xef\xbb\xbf{"a": 1}', '{"b": "ä"}'.encode(), b'{"c": 3}']


@pytest.mark.parametrize("text", [b"", b"\n", b"\xef\xbb\xbf", b" \n\t\n"])
async def test_nothing(text: bytes) -> None:
    assert await lines(text, 1) == []


@pytest.mark.parametrize("size", [1, 8, 1000])
@pytest.mark.parametrize("end", [b"", b"\n"])
async def test_a_long_line_is_refused(size: int, end: bytes) -> None:
    assert len(await lines(b"1\n" + b"x" * 100 + end, size)) == 2
    with pytest.raises(BatchRefused, match="line 2 is longer than 100 bytes") as refused:
        await lines(b"1\n" + b"x" * 101 + end, size)
    assert refused.value.problems == ({"code": "line_too_long", "message": refused.value.message, "line": 2},)
