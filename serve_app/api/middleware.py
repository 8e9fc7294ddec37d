"""The door: what comes in is bounded while it is read, what goes out carries an id and safe headers.

`RequestMiddleware` is ASGI middleware around the whole application. (Serve's proxy reads `x-request-timeout-seconds`
and `x-request-disconnect-disabled` before any request gets here; jobs run outside of their request, so neither reaches
them. Nor does its HTTP server bound headers: here they are at least refused.)
"""

import re
import uuid
from collections.abc import Sequence

from ray.exceptions import TaskCancelledError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.engine.errors import DarkroomError
from serve_app.api.errors import INTERNAL, error_response
from serve_app.config.settings import LimitsSettings
from serve_app.errors import BodyTooLarge, HeadersTooLarge
from serve_app.observability.logs import bound, get_logger
from serve_app.observability.metrics import FrontMetrics

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
    # of whatever is no page; a page brings its own policy
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
}
# for a browser that came by TLS: never again without
_TLS_ONLY = "max-age=31536000"


class RequestMiddleware:
    """Gives each request an id, bounds its headers and body, and turns an uncaught exception into a 500.

    Args:
        app: the application behind it.
        metrics: count the errors that are answered here.
        limits: of bodies. `request.state.max_body_bytes` is the request's own bound, which its route may raise.
        adds_request_id: whether to set X-Request-ID on responses; Serve's proxy does so by itself.
    """

    def __init__(self, app: ASGIApp, metrics: FrontMetrics, limits: LimitsSettings, *, adds_request_id: bool) -> None:
        self._app = app
        self._metrics = metrics
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
        state = {
            **scope.get("state", {}),
            "request_id": request_id,
            "limits": self._limits,
            "max_body_bytes": self._limits.max_body_bytes,
            "head": scope["method"] == "HEAD",
        }
        # HEAD is GET to the routes: the HTTP server drops the body
        scope = {**scope, "method": "GET" if state["head"] else scope["method"], "state": state}
        started = False

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._complete(MutableHeaders(scope=message), scope, request_id)
            await send(message)

        with bound(request_id=request_id):
            try:
                _check_headers(scope["headers"])
                await self._app(scope, _limited(headers, receive, scope), answer)
            except ClientDisconnect:
                return
            except Exception as error:
                if not isinstance(error, DarkroomError):
                    log.exception("a request broke", path=scope["path"][:128])
                    error = INTERNAL
                if not started:  # else the connection just ends
                    self._metrics.refused(error.code)
                    await error_response(error, scope)(scope, receive, answer)

    def _complete(self, headers: MutableHeaders, scope: Scope, request_id: str) -> None:
        """Add what every answer carries."""
        for name, value in _HEADERS.items():
            headers.setdefault(name, value)
        if "etag" not in headers:  # a file's copy is asked about before it is used again
            headers.setdefault("Cache-Control", "no-store")
        if scope.get("scheme") == "https":
            headers.setdefault("Strict-Transport-Security", _TLS_ONLY)
        if self._adds_request_id:
            headers["X-Request-ID"] = request_id


def _limited(headers: Headers, receive: Receive, scope: Scope) -> Receive:
    """`receive`, which raises BodyTooLarge as soon as the body is known to be longer than the request's bound.

    A client that leaves is http.disconnect, also where Serve's proxy cancels its own call for the messages.
    """
    declared = headers.get("content-length", "")
    # (more digits than any length has aren't read as a number)
    declared_bytes = int(declared[:18]) if declared.isascii() and declared.isdigit() else 0
    read = 0

    async def limited() -> Message:
        nonlocal read
        most = scope["state"]["max_body_bytes"]
        if declared_bytes <= most:
            try:
                message = await receive()
            except TaskCancelledError:
                return {"type": "http.disconnect"}
            read += len(message.get("body", b""))
            if read <= most:
                return message
        raise BodyTooLarge(f"the body is longer than {most} bytes")

    return limited


def _check_headers(headers: Sequence[tuple[bytes, bytes]]) -> None:
    if len(headers) > _MOST_HEADERS or sum(len(name) + len(value) for name, value in headers) > _HEADERS_BYTES:
        raise HeadersTooLarge(
            f"the request has more than {_MOST_HEADERS} headers, or more than {_HEADERS_BYTES} bytes of them"
        )
