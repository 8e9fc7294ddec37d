"""Bodies of multipart/form-data: texts and files by their names, bounded like any other body.

The body is read as a whole, within its route's bound (intake.py), and taken apart in a thread, without a temporary
file. Knows no field's meaning.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO

from multipart import MultipartError, MultipartParser, parse_options_header
from starlette.requests import Request

from deployments.engine.errors import InvalidRequest
from serve_app.api.middleware import read_body
from serve_app.config.settings import LimitsSettings
from serve_app.errors import UnreadableRequest, UnsupportedMediaType

FORM_TYPE = "multipart/form-data"

# of a form; the dialects' largest has some forty
_MOST_PARTS = 100

# much longer than a prompt, much shorter than an image
_TEXT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Form:
    """The parts of a form. texts: by name, each once. files: those that brought a file's name, in their order."""

    texts: Mapping[str, str]
    files: Mapping[str, tuple[bytes, ...]]


def is_form(request: Request) -> bool:
    """The body says that it is one."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == FORM_TYPE


async def read_form(request: Request, limits: LimitsSettings) -> Form:
    """The form in a request's body.

    Raises UnsupportedMediaType, BodyTooLarge, BodyTooSlow, UnreadableRequest, and InvalidRequest where a name of a
    text comes twice.
    """
    if not is_form(request):
        raise UnsupportedMediaType(f"the body must be a form: send it with Content-Type: {FORM_TYPE}")
    try:
        _, options = parse_options_header(request.headers["content-type"])
        boundary = options["boundary"].encode("ascii")
    except (KeyError, ValueError):
        raise UnreadableRequest(f"Content-Type: {FORM_TYPE} must name its boundary") from None
    return await asyncio.to_thread(_form, await read_body(request, limits), boundary)


def _form(body: bytes, boundary: bytes) -> Form:
    texts: dict[str, str] = {}
    files: dict[str, tuple[bytes, ...]] = {}
    try:
        for part in _parts(body, boundary):
            if part.filename is not None:
                files[part.name] = (*files.get(part.name, ()), part.raw)
            elif part.name in texts:
                raise InvalidRequest(f"{ascii(part.name)[:64]} comes twice", part.name[:64])
            elif part.size > _TEXT_BYTES:
                raise UnreadableRequest(f"a text of the form is longer than {_TEXT_BYTES} bytes")
            else:
                texts[part.name] = part.raw.decode()
    except MultipartError:
        raise UnreadableRequest("the body is no multipart form that can be read, or one of too many parts") from None
    except UnicodeDecodeError:
        raise UnreadableRequest("a text of the form is no UTF-8") from None
    return Form(texts, files)


def _parts(body: bytes, boundary: bytes) -> MultipartParser:
    """The parts, in memory all of them: the body is there already. Iterating raises MultipartError."""
    parser: MultipartParser = MultipartParser(
        BytesIO(body),
        boundary,
        content_length=len(body),
        strict=True,
        buffer_size=len(body) + 1,  # in one piece: what may follow the last boundary is an error in a piece of its own
        part_limit=_MOST_PARTS,
        spool_limit=len(body) + 1,
        memory_limit=len(body) + 1,
    )
    return parser
