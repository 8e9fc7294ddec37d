"""Forms as clients and as attackers send them: texts, files, or a refusal; bounded while they are read."""

import asyncio
import importlib.util
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from deployments.engine.errors import InvalidRequest
from serve_app.api.bodies import Form, read_form
from serve_app.config.settings import LimitsSettings
from serve_app.errors import UnreadableRequest, UnsupportedMediaType
from tests.serve_app.front import Front

TYPE = "multipart/form-data; boundary=abc"


def part(name: str, data: bytes, *, file: bool = False, headers: bytes = b"") -> bytes:
    named = f'form-data; name="{name}"' + ('; filename="x"' if file else "")
    return b"--abc\r\nContent-Disposition: " + named.encode() + b"\r\n" + headers + b"\r\n" + data + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--abc--\r\n"


async def read(body: bytes, content_type: str = TYPE) -> Form:
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", content_type.encode())]
    scope = {"type": "http", "method": "POST", "headers": headers, "state": {"limits": LimitsSettings()}}
    return await read_form(Request(scope, receive))


async def test_texts_and_files_by_their_names() -> None:
    body = form(
        part("prompt", "ein Kreis, größer".encode()),
        part("image", b"\r\n--abd\x00\xff", file=True, headers=b"Content-Type: image/png\r\n"),
        part("image", b"", file=True),
    )
    read_one = await read(body)
    assert read_one == Form({"prompt": "ein Kreis, größer"}, {"image": (b"\r\n--abd\x00\xff", b"")})
    quoted = await read(body, 'Multipart/Form-Data; charset=utf-8; boundary="abc"')
    assert quoted == read_one


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b"--abc",
        form(part("x", b"1"))[:-8],
        form(part("x", b"1"))[:30],
        b"--abc\r\n\r\nno name\r\n--abc--\r\n",
        b"--abc\r\nContent-Disposition: attachment; name=x\r\n\r\n1\r\n--abc--\r\n",
        form(*(part(f"field{number}", b"1") for number in range(101))),
        form(part("x", b"1", headers=b"X: y\r\n" * 20)),
        form(part("x" * 5000, b"1")),
        form(part("x", b"\xff")),
        form(part("x", b"1" * ((1 << 20) + 1))),
    ],
)
async def test_what_is_no_form_is_refused(body: bytes) -> None:
    with pytest.raises(UnreadableRequest):
        await read(body)


async def test_a_text_has_one_value() -> None:
    with pytest.raises(InvalidRequest) as caught:
        await read(form(part("n", b"1"), part("n", b"2")))
    assert caught.value.field == "n"


@pytest.mark.parametrize(
    ("content_type", "error"),
    [
        ("application/json", UnsupportedMediaType),
        ("application/x-www-form-urlencoded", UnsupportedMediaType),
        ("multipart/mixed; boundary=abc", UnsupportedMediaType),
        ("multipart/form-data", UnreadableRequest),
        ("multipart/form-data; boundary=", UnreadableRequest),
        ("multipart/form-data; boundary=" + "a" * 5000, UnreadableRequest),
    ],
)
async def test_the_type_says_that_it_is_a_form(content_type: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await read(form(part("x", b"1")), content_type)


def test_starlette_could_read_no_form() -> None:
    """It needs a package that isn't here; where somebody installs it, the bounds above need another look."""
    assert importlib.util.find_spec("python_multipart") is None


async def test_a_body_is_read_no_further_than_its_bound(running: Front) -> None:
    limits = running.service.settings.limits
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b"--abc\r\nContent-Disposition: form-data; name=image; filename=x\r\n\r\n"
        while True:
            sent += 1 << 20
            yield bytes(1 << 20)

    for path in ("/v1/images/edits", "/v1/images/variations", "/generate"):
        sent = 0
        answer = await running.http.post(path, content=endless(), headers={"content-type": TYPE})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
        assert sent <= limits.max_image_body_bytes + (2 << 20)


@given(
    st.binary(max_size=300)
    | st.lists(
        st.sampled_from(
            [
                b"--abc",
                b"\r\n",
                b"--",
                b"Content-Disposition: form-data",
                b"; name=x",
                b"; filename=y",
                b"\xff",
                b"\0",
                b": ",
            ]
        ),
        max_size=30,
    ).map(b"".join)
)
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        asyncio.run(read(body))
    except (UnreadableRequest, InvalidRequest) as refused:
        str(refused).encode()
