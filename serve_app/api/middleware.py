"""The door: what comes in is bounded while it is read, what goes out carries an id and safe headers.

`RequestMiddleware` is ASGI middleware around the whole application; `read_json` turns a body into plain JSON values
before anything else looks at them. (Serve's proxy reads `x-request-timeout-seconds` and `x-request-disconnect-disabled`
before any request gets here; jobs run outside of their request, so neither reaches them. Nor does its HTTP server bound
headers: here they are at least refused.)
"""

import asyncio
import json
import math
import re
import uuid
from collections.abc import Sequence
from typing import Any, NoReturn

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.errors import INTERNAL, error_response
from serve_app.auth.route_table import WITH_IMAGES, Found, find_route
from serve_app.config.settings import LimitsSettings
from serve_app.errors import BodyTooLarge, BodyTooSlow, HeadersTooLarge, UnreadableRequest, UnsupportedMediaType
from serve_app.observability.logs import bound, get_logger

log = get_logger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)

# of a request: browsers send some twenty, proxies add a few
_MOST_HEADERS, _HEADERS_BYTES = 200, 64 << 10

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
# for a browser that came by TLS: never again without
_TLS_ONLY = "max-age=31536000"
# of whatever is no page; a page brings its own policy
_NO_PAGE = "default-src 'none'; frame-ancestors 'none'; sandbox"

# strings as a whole (an unterminated one runs to the end, so that the scan stays linear), brackets, commas
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\Z)|[\[\]{},]', re.DOTALL)

# more digits than any number that is of use here, few enough to be read at once
_DIGITS = 40


class RequestMiddleware:
    """Gives each request an id, bounds its body, answers HEAD as GET, and turns what nobody caught into a 500.

    adds_request_id: set X-Request-ID on responses; Serve's proxy does so by itself.
    """

    def __init__(self, app: ASGIApp, limits: LimitsSettings, *, adds_request_id: bool) -> None:
        self._app = app
        self._limits = limits
        self._adds_request_id = adds_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if _REQUEST_ID.fullmatch(request_id) is None:
            request_id = uuid.uuid4().hex
        scope = {**scope, "state": {**scope.get("state", {}), "request_id": request_id}}
        answer = _Answer(scope, send, request_id if self._adds_request_id else None)
        if scope["method"] == "HEAD":
            scope["method"] = "GET"
        with bound(request_id=request_id):
            try:
                _check_headers(scope["headers"])
                limited = _limited(headers, receive, self._max_body_bytes(scope))
                await self._app(scope, limited, answer.send)
            except (ClientDisconnect, _HeadAnswered):
                return
            except (BodyTooLarge, HeadersTooLarge) as error:
                await answer.instead(error_response(error, scope), scope, receive)
            except Exception:
                log.exception("a request broke", path=scope["path"][:128])
                await answer.instead(error_response(INTERNAL, scope), scope, receive)

    def _max_body_bytes(self, scope: Scope) -> int:
        route = find_route(scope["method"], scope["path"].removeprefix(scope.get("root_path", "")))
        holds_images = isinstance(route, Found) and route.path in WITH_IMAGES
        return self._limits.max_image_body_bytes if holds_images else self._limits.max_body_bytes


def _limited(headers: Headers, receive: Receive, max_bytes: int) -> Receive:
    """`receive`, which raises BodyTooLarge as soon as the body is known to be longer than `max_bytes`."""
    declared = headers.get("content-length", "")
    too_long = declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > max_bytes)
    read = 0

    async def limited() -> Message:
        nonlocal read
        if too_long:
            _refuse(max_bytes)
        message = await receive()
        if message["type"] == "http.request":
            read += len(message.get("body", b""))
            if read > max_bytes:
                _refuse(max_bytes)
        return message

    return limited


def _refuse(max_bytes: int) -> NoReturn:
    raise BodyTooLarge(f"the body is longer than {max_bytes} bytes")


def _check_headers(headers: Sequence[tuple[bytes, bytes]]) -> None:
    if len(headers) > _MOST_HEADERS or sum(len(name) + len(value) for name, value in headers) > _HEADERS_BYTES:
        raise HeadersTooLarge(f"more than {_MOST_HEADERS} headers, or {_HEADERS_BYTES} bytes of them")


class _HeadAnswered(OSError):
    """A HEAD request has its answer; the rest of the body is for nobody."""


class _Answer:
    """The response on its way out."""

    def __init__(self, scope: Scope, send: Send, request_id: str | None) -> None:
        self._send = send
        self._request_id = request_id
        self._head = scope["method"] == "HEAD"
        self._by_tls = scope.get("scheme") == "https"
        self._started = False
        self._ended = False

    async def send(self, message: Message) -> None:
        """ASGI's send."""
        if self._ended:
            raise _HeadAnswered
        if message["type"] == "http.response.start":
            self._started = True
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Content-Security-Policy", _NO_PAGE)
            if "etag" not in headers:  # a file's copy is asked about before it is used again
                headers.setdefault("Cache-Control", "no-store")
            if self._by_tls:
                headers.setdefault("Strict-Transport-Security", _TLS_ONLY)
            if self._request_id is not None:
                headers["X-Request-ID"] = self._request_id
        elif self._head and message["type"] == "http.response.body":
            self._ended = True
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            if message.get("more_body", False):
                raise _HeadAnswered
            return
        await self._send(message)

    async def instead(self, response: ASGIApp, scope: Scope, receive: Receive) -> None:
        """Send this response, unless another one has begun already: then the connection just ends."""
        if not self._started:
            await response(scope, receive, self.send)


async def read_json(request: Request, limits: LimitsSettings) -> Any:
    """The JSON value in a request's body.

    Raises UnsupportedMediaType, BodyTooLarge, BodyTooSlow, UnreadableRequest.
    """
    content_type, _, parameters = request.headers.get("content-type", "").partition(";")
    media_type = content_type.strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        raise UnsupportedMediaType("the body must be JSON: send it with Content-Type: application/json")
    charset = re.search(r'charset="?([\w-]+)', parameters, re.ASCII)
    if charset is not None and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMediaType("the body must be UTF-8")
    return parse_json(await read_body(request, limits), limits)


async def read_body(request: Request, limits: LimitsSettings) -> bytes:
    """A request's body as it came. Raises UnsupportedMediaType, BodyTooLarge, BodyTooSlow."""
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType("the body must not be compressed")
    try:
        async with asyncio.timeout(limits.body_timeout_s):
            body = await request.body()
    except TimeoutError:
        raise BodyTooSlow(f"the body didn't arrive within {limits.body_timeout_s:g} s") from None
    return body


def parse_json(body: bytes, limits: LimitsSettings) -> Any:
    """Plain JSON: bounded in depth and size, no NaN, no Infinity, no key twice. Raises UnreadableRequest."""
    if not body.strip():
        raise UnreadableRequest("the body is empty: send a JSON object")
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableRequest(f"the body is no UTF-8 (byte {error.start})") from None
    _check_shape(text, limits)
    try:
        return json.loads(
            text,
            parse_constant=_no_constant,
            parse_int=_integer,
            parse_float=_number,
            object_pairs_hook=_without_doubles,
        )
    except json.JSONDecodeError as error:
        raise UnreadableRequest(
            f"the body is no JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from None


def _check_shape(text: str, limits: LimitsSettings) -> None:
    """Depth and number of values, before anything is built of them."""
    depth = values = 0
    for number, token in enumerate(_TOKENS.finditer(text)):
        if number > 4 * limits.json_values + 1:  # of which a valid document has four for each value at most
            raise UnreadableRequest(f"the body holds more than {limits.json_values} values")
        match text[token.start()]:
            case "[" | "{":
                depth += 1
                values += 1
                if depth > limits.json_depth:
                    raise UnreadableRequest(f"the body is nested deeper than {limits.json_depth}")
            case "]" | "}":
                depth -= 1
            case ",":
                values += 1
            case _:
                continue
        if values > limits.json_values:
            raise UnreadableRequest(f"the body holds more than {limits.json_values} values")


def _no_constant(name: str) -> NoReturn:
    raise UnreadableRequest(f"{name} is no JSON number")


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise UnreadableRequest(f"the body holds a number of {len(digits)} digits")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise UnreadableRequest("the body holds a number beyond all ranges")
    return value


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise UnreadableRequest("the body holds an object with the same key twice")
    return members
