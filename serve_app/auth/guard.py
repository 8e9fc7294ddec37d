"""The guard: whoever comes in is looked up in the route table, and is known before a route sees the request.

ASGI middleware between the door (intake.py) and the application. What each route asks for is in route_table.py, the
keys are in keys.py. Where there are no keys, only requests that reached this machine by its loopback and under a
private name are let in, unless the settings say `open_to_all`: whatever Serve was told to listen on.
"""

import ipaddress
import time

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.engine.errors import DarkroomError
from serve_app.api.errors import error_response, unknown_method, unknown_route
from serve_app.api.service import Service
from serve_app.auth import audit
from serve_app.auth.caller import Caller, credentials_of, keyed_caller, unkeyed_caller, unknown_caller
from serve_app.auth.keys import KeyRing
from serve_app.auth.rate_limits import RateLimits
from serve_app.auth.route_table import GENERATIONS, Access, Found, find_route
from serve_app.auth.signed_urls import ImageLink
from serve_app.errors import Forbidden, Unauthenticated
from serve_app.jobs.job import is_job_id
from serve_app.observability.logs import sensitive

_NO_KEY = "this needs an API key: Authorization: Bearer KEY, HTTP Basic with the key as password, or X-API-Key: KEY"
_NOT_LOOPBACK = "this service has no API keys, so it answers on loopback only; `access` in its settings says more"
_OTHER_SITE = "a page of another site may not ask for this"

# names under these can't be bought, so that no stranger can make one lead here
_PRIVATE_NAMES = frozenset({"localhost", "local", "internal", "lan", "home", "test"})


class Guard:
    """Lets a request through to `app` with its Caller in request.state.caller, or answers 401, 403, 404, 405, 429.

    keys: None where none are asked for.
    """

    def __init__(self, app: ASGIApp, service: Service, keys: KeyRing | None) -> None:
        settings = service.settings.access
        self._app = app
        self._service = service
        self._open_to_all = settings.open_to_all
        self._keys = keys
        self._rates = RateLimits(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._guarded(scope, receive, send)
        else:  # no route speaks WebSocket
            await send({"type": "websocket.close", "code": 1008})

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = HTTPConnection(scope)
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        route = find_route(scope["method"], path)
        caller = self._caller(request, route)
        status, code = audit.NO_ANSWER, None

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        credentials = credentials_of(request)
        with sensitive(credentials.key, request.headers.get("authorization", "")):
            try:
                await self._admit(request, route, caller)
            except DarkroomError as error:
                code = error.code
                self._service.metrics.refused(code)
                response = error_response(error, scope)
                if isinstance(route, tuple) and route:
                    response.headers["Allow"] = ", ".join(route)
                await response(scope, receive, noted)
            else:
                scope["state"]["caller"] = caller
                await self._app(scope, receive, noted)
            finally:
                if self._keys is not None and (code is not None or caller.key is not None):
                    audit.record(
                        caller,
                        method=scope["method"],
                        route=route.path if isinstance(route, Found) else "unknown",
                        status=status,
                        code=code,
                        jobs=[*_jobs_named(route), *caller.accepted],
                        address=request.client.host if request.client else "",
                    )

    def _caller(self, request: HTTPConnection, route: Found | tuple[str, ...]) -> Caller:
        request_id: str = request.scope["state"]["request_id"]
        if self._keys is None:
            return unkeyed_caller(request, request_id)
        credentials = credentials_of(request)
        key = self._keys.find(credentials.key)
        if key is not None:
            return keyed_caller(key, credentials.user, request_id)
        if isinstance(route, Found) and route.access is Access.LINK:
            link = ImageLink.parse(request.url.query)
            signer = None if link is None else self._keys.by_id(link.key_id)
            if link is not None and signer is not None and link.holds(route.parts["name"], signer, time.time()):
                return keyed_caller(signer, "", request_id)
        return unknown_caller(request, request_id)

    async def _admit(self, request: HTTPConnection, route: Found | tuple[str, ...], caller: Caller) -> None:
        """Raises what is to be answered where the caller may not ask for the route, or not now."""
        if not isinstance(route, Found):
            path = request.url.path
            raise unknown_method(path, request.scope["method"]) if route else unknown_route(path)
        needed = route.access.scope
        if needed is None:
            return
        if request.scope["method"] != "GET" and request.headers.get("sec-fetch-site") == "cross-site":
            raise Forbidden(_OTHER_SITE)  # a page elsewhere, with this browser's remembered password or none
        if self._keys is None:
            if not self._open_to_all and not (by_loopback(request) and under_own_name(request)):
                raise Forbidden(_NOT_LOOPBACK)
            return
        if caller.key is None:
            raise Unauthenticated(_NO_KEY)
        linked = route.access is Access.LINK and not credentials_of(request).key
        if not linked and not caller.may(needed):
            raise Forbidden(f"this key may not do that: it lacks the scope {needed}")
        await self._rates.count(caller.key.id, generation=route.path in GENERATIONS)


def by_loopback(request: HTTPConnection) -> bool:
    """The connection ended at a loopback address of this machine, or at none: in this process, or a Unix socket."""
    server = request.scope.get("server")
    if server is None or server[1] is None:
        return True
    try:
        address = ipaddress.ip_address(server[0])
    except ValueError:  # a server of a network knows the address that it was reached at; this is none
        return True
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def under_own_name(request: HTTPConnection) -> bool:
    """The Host header is an address or a private name: no stranger's, which their pages could make lead here.

    (DNS rebinding: to the browser such a page is then of the same site as this service, and may read its answers.)
    """
    host = (request.url.hostname or "").lower()
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.rpartition(".")[2] in _PRIVATE_NAMES
    return True


def _jobs_named(route: Found | tuple[str, ...]) -> list[str]:
    """The job that a path names, by itself or in an image's name."""
    if not isinstance(route, Found):
        return []
    named = route.parts.get("job_id") or route.parts.get("name", "").partition("-")[0]
    return [named] if is_job_id(named) else []
