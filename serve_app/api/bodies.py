"""Request bodies as FastAPI dependencies: JSON and forms, bounded while they are read, checked by the dialect's model.

And the header by which a client names a request, so that it may come again.

A route declares `asked: Annotated[Model, Depends(JsonBody(Model, example))]` after its caller (route_scopes.py), so
that the body of a refused request isn't read: FastAPI would read a body parameter of its own before any dependency. The
OpenAPI document takes the body's schema and its example from here (openapi.py).
"""

import asyncio
import math
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Collection, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Header
from multipart import MultipartError, MultipartParser, parse_options_header
from pydantic import BaseModel
from pydantic_core import from_json
from starlette.requests import Request

from deployments.engine.errors import InvalidRequest
from serve_app.config.settings import LimitsSettings
from serve_app.errors import BodyTooSlow, UnreadableRequest, UnsupportedMediaType
from serve_app.schemas.validation import validated

Model = TypeVar("Model", bound=BaseModel)

JSON_TYPE = "application/json"
FORM_TYPE = "multipart/form-data"

# of a form; the dialects' largest has some forty parts
_MOST_PARTS = 100

# much longer than a prompt, much shorter than an image
_TEXT_BYTES = 1 << 20

# beyond limits.body_timeout_s an upload has the time that it takes at this rate, in bytes a second
_SLOWEST = 1 << 20

FILE_SCHEMA = {"type": "string", "format": "binary"}

# the smallest PNG file, of one pixel
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mNgYmICAAAQAAei1PI/AAAAAElFTkSuQmCC"

_KEY_HEADER = "Idempotency-Key"


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """A reference to a model's schema in the OpenAPI document."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}


class RequestBody(ABC):
    """A dependency that reads a body."""

    model: type[BaseModel]
    """That the schemas of `content` refer to."""

    @property
    @abstractmethod
    def content(self) -> dict[str, Any]:
        """The body's media types with their schemas and examples, as OpenAPI writes them."""


class JsonBody(RequestBody, Generic[Model]):
    """Reads a JSON object as a model.

    Args:
        model: What the body has to be.
        example: A body that the default service takes.
    """

    model: type[Model]

    def __init__(self, model: type[Model], example: Mapping[str, Any]) -> None:
        self.model = model
        self._example = example

    @property
    def content(self) -> dict[str, Any]:
        return {JSON_TYPE: {"schema": schema_of(self.model), "example": self._example}}

    async def __call__(self, request: Request) -> Model:
        return validated(self.model, await read_json(request))


@dataclass(frozen=True, slots=True)
class Form:
    """The parts of a form.

    Attributes:
        texts: By name, each once.
        lists: Texts whose name has `[]`, in their order.
        files: Those that came with a file's name, in their order.
    """

    texts: Mapping[str, str]
    files: Mapping[str, tuple[bytes, ...]]
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def media_type(request: Request) -> str:
    """The type that the request gives its body, without parameters; "" where it gives none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request) -> bytes:
    """A request's body as it came.

    Raises:
        UnsupportedMediaType: It is compressed.
        BodyTooLarge: It is longer than the route's bound (middleware.py).
        BodyTooSlow: It didn't arrive in time.
    """
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType("the body must not be compressed")
    timeout_s = _limits(request).body_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            return await request.body()
    except TimeoutError:
        raise BodyTooSlow(f"the body didn't arrive within {timeout_s:g} s") from None


async def body_parts(request: Request) -> AsyncGenerator[bytes, None]:
    """A long body as it comes.

    Raises:
        BodyTooLarge: It is longer than the route's bound (middleware.py).
        BodyTooSlow: It didn't arrive in time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _limits(request).body_timeout_s
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                part = await anext(stream, None)
        except TimeoutError:
            raise BodyTooSlow("the file doesn't arrive fast enough") from None
        if part is None:
            return
        if part:
            deadline += len(part) / _SLOWEST
            yield part


async def read_json(request: Request) -> Any:
    """The JSON value in a request's body, also as `request.state.json`.

    Raises:
        UnsupportedMediaType: Its type isn't JSON in UTF-8.
        UnreadableRequest: It is no JSON.
        BodyTooLarge, BodyTooSlow: see read_body.
    """
    kind = media_type(request)
    if kind != JSON_TYPE and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedMediaType(f"the body must be JSON: send it with Content-Type: {JSON_TYPE}")
    charset = re.search(r'charset="?([\w-]+)', request.headers["content-type"], re.ASCII)
    if charset is not None and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMediaType("the body must be UTF-8")
    request.state.json = parse_json(await read_body(request), _limits(request))
    return request.state.json


def parse_json(body: bytes, limits: LimitsSettings) -> Any:
    """A JSON value, at most 200 levels deep (pydantic's own bound), without NaN or Infinity.

    Raises:
        UnreadableRequest: It is no JSON, may hold too many values, or holds a number beyond a float's range.
    """
    if not body.strip():
        raise UnreadableRequest("the body is empty: send a JSON object")
    # Before anything is built of it. Texts count too: none that is of use here holds thousands of these characters.
    if sum(map(body.count, (b",", b"[", b"{"))) > limits.json_values:
        raise UnreadableRequest(f"the body holds more than {limits.json_values} values")
    try:
        value = from_json(body.removeprefix(b"\xef\xbb\xbf"), allow_inf_nan=False)
    except ValueError as error:
        raise UnreadableRequest(f"the body isn't JSON: {error}") from None
    if _holds_infinity(value):
        raise UnreadableRequest("the body holds a number beyond a float's range, which ends at 1.8e308")
    return value


def _holds_infinity(value: Any) -> bool:
    """Whether a number in a JSON value is too large for a float: from_json reads `1e999` as infinity."""
    containers: list[Collection[Any]] = [[value]]
    while containers:
        values = containers.pop()
        if math.inf in values or -math.inf in values:
            return True
        nested = [item for item in values if isinstance(item, (dict, list))]
        containers += [item.values() if isinstance(item, dict) else item for item in nested]
    return False


async def read_form(request: Request) -> Form:
    """The multipart form in a request's body, taken apart in a thread, without temporary files.

    Raises:
        UnsupportedMediaType: Its type is another one.
        UnreadableRequest: It is broken, or has too many parts or too long texts.
        InvalidRequest: A text's name comes twice.
        BodyTooLarge, BodyTooSlow: see read_body.
    """
    if media_type(request) != FORM_TYPE:
        raise UnsupportedMediaType(f"the body must be a form: send it with Content-Type: {FORM_TYPE}")
    try:
        _, options = parse_options_header(request.headers["content-type"])
        boundary = options["boundary"].encode("ascii")
    except (KeyError, ValueError):
        raise UnreadableRequest(f"Content-Type: {FORM_TYPE} must name its boundary") from None
    return await asyncio.to_thread(_form, await read_body(request), boundary)


def _form(body: bytes, boundary: bytes) -> Form:
    texts: dict[str, str] = {}
    files: dict[str, tuple[bytes, ...]] = {}
    lists: dict[str, tuple[str, ...]] = {}
    try:
        for part in _parts(body, boundary):
            if part.filename is not None:
                files[part.name] = (*files.get(part.name, ()), part.raw)
            elif part.name in texts:
                raise InvalidRequest(f"{ascii(part.name)[:64]} comes twice", part.name[:64])
            elif part.size > _TEXT_BYTES:
                raise UnreadableRequest(f"a text of the form is longer than {_TEXT_BYTES} bytes")
            elif "[]" in part.name:
                lists[part.name] = (*lists.get(part.name, ()), part.raw.decode())
            else:
                texts[part.name] = part.raw.decode()
    except MultipartError:
        raise UnreadableRequest(
            f"the body isn't a complete multipart form, or has more than {_MOST_PARTS} parts"
        ) from None
    except UnicodeDecodeError:
        raise UnreadableRequest("a text of the form isn't UTF-8") from None
    return Form(texts, files, lists)


def _parts(body: bytes, boundary: bytes) -> MultipartParser:
    """The parts, in memory all of them: the body is there already. Iterating raises MultipartError."""
    return MultipartParser(
        BytesIO(body),
        boundary,
        content_length=len(body),
        strict=True,
        buffer_size=len(body) + 1,  # in one piece: what may follow the last boundary is an error in a piece of its own
        part_limit=_MOST_PARTS,
        spool_limit=len(body) + 1,
        memory_limit=len(body) + 1,
    )


async def _idempotency_key(
    request: Request,
    key: Annotated[
        str | None,
        Header(
            alias=_KEY_HEADER,
            min_length=1,
            max_length=255,
            description="The request's name: however often it comes under it, it is one job.",
            examples=["8e03978e-40d5-43dd-bc93-6894a57f9324"],
        ),
    ] = None,
) -> str | None:
    """The request's name, if it has one."""
    if key is not None and (len(request.headers.getlist(_KEY_HEADER)) > 1 or re.fullmatch("[ -~]+", key) is None):
        raise InvalidRequest(f"{_KEY_HEADER} must be one header of printable ASCII characters", _KEY_HEADER)
    return key


IdempotencyKey = Annotated[str | None, Depends(_idempotency_key)]


def _limits(request: Request) -> LimitsSettings:
    limits: LimitsSettings = request.state.limits
    return limits
