"""The guard identifies the caller of each request, admits it to routes, and writes the audit log.

It is ASGI middleware: it looks the key up and puts the caller into `request.state`. The routes' own dependencies
(route_scopes.py) call it to admit the caller. Without keys only requests that reached this machine by its loopback and
under a private name are admitted, whatever address Serve listens on, unless the settings have `open_to_all`; what needs
the scope admin is for them alone, even so.

The audit log has a line for each request with a key and for each refusal: caller, route and result. It has no prompts,
keys, bodies or queries: a route is named by its template, a key by its id.
"""

import ipaddress
import time
from collections.abc import Callable, Mapping

from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as ConnectionScope

from deployments.engine.errors import DarkroomError
from serve_app.auth.caller import Caller, credentials_of, keyed_caller, unkeyed_caller, unknown_caller
from serve_app.auth.key_file import KeyRing, Scope
from serve_app.auth.rate_limits import RateLimits
from serve_app.auth.route_scopes import Access
from serve_app.auth.signed_urls import ImageLink
from serve_app.config.access import AccessSettings
from serve_app.errors import Forbidden, Unauthenticated
from serve_app.jobs.job import is_job_id
from serve_app.observability.logs import get_logger, sensitive

audit = get_logger("darkroom.audit")

_NO_KEY = "this needs an API key: Authorization: Bearer KEY, HTTP Basic with the key as password, or X-API-Key: KEY"
_NOT_LOOPBACK = "this service has no API keys, so it answers on loopback only; `access` in its settings says more"
_OTHER_SITE = "a page of another site may not ask for this"

# names under these can't be bought, so that no stranger can make one lead here
_PRIVATE_NAMES = frozenset({"localhost", "local", "internal", "lan", "home", "test"})


class Guard:
    """Looks up each request's caller, and admits callers to routes.

    Args:
        app: the application behind it.
        settings: whether callers without a key are served.
        keys: None without keys.
        rates: of keys.
        count_refusal: called with the tenant of a request for images that was refused.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: AccessSettings,
        keys: KeyRing | None,
        rates: RateLimits,
        count_refusal: Callable[[str], None],
    ) -> None:
        self._app = app
        self._open_to_all = settings.open_to_all
        self._keys = keys
        self._rates = rates
        self._count_refusal = count_refusal

    async def __call__(self, scope: ConnectionScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = HTTPConnection(scope)
        request.state.guard = self
        request.state.caller = self._caller(request)
        request.state.error_code = None
        request.state.draws = False
        status = 0  # of a client that left before it was answered

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with sensitive(credentials_of(request).key, request.headers.get("authorization", "")):
            try:
                await self._app(scope, receive, noting)
            except ClientDisconnect:
                raise
            except Exception:  # RequestMiddleware answers it
                request.state.error_code = DarkroomError.code
                status = status or 500
                raise
            finally:
                if request.state.draws and _outcome(request) == "refused":
                    self._count_refusal(request.state.caller.tenant)
                if self._keys is not None:
                    _write_down(request, status)

    def _caller(self, request: HTTPConnection) -> Caller:
        request_id: str = request.state.request_id
        if self._keys is None:
            return unkeyed_caller(request, request_id)
        credentials = credentials_of(request)
        key = self._keys.find(credentials.key)
        return unknown_caller(request, request_id) if key is None else keyed_caller(key, credentials.user, request_id)

    async def admit(self, request: Request, access: Access) -> Caller:
        """Admit the caller to the route. Raises Unauthenticated, Forbidden or TooManyRequests."""
        caller: Caller = request.state.caller
        if access.scope is None:
            return caller
        if request.method != "GET" and request.headers.get("sec-fetch-site") == "cross-site":
            raise Forbidden(_OTHER_SITE)  # a page elsewhere, with this browser's remembered password or none
        if self._keys is None:
            open_to_all = self._open_to_all and access.scope is not Scope.ADMIN
            if not open_to_all and not (by_loopback(request) and under_own_name(request)):
                raise Forbidden(_NOT_LOOPBACK)
            request.state.draws = access.draws
            return caller
        if caller.key is None and access.linked:
            caller = request.state.caller = self._link_signer(request, self._keys) or caller
        elif not caller.may(access.scope) and caller.key is not None:
            raise Forbidden(f"this key may not do that: it lacks the scope {access.scope}")
        if caller.key is None:
            raise Unauthenticated(_NO_KEY)
        request.state.draws = access.draws
        await self._rates.count(caller.key.id, generation=access.draws)
        return caller

    def _link_signer(self, request: Request, keys: KeyRing) -> Caller | None:
        """Whose key has signed the image's address, where its signature holds."""
        link = ImageLink.parse(request.url.query)
        signer = None if link is None else keys.by_id(link.key_id)
        if link is None or signer is None or not link.holds(request.path_params["name"], signer, time.time()):
            return None
        return keyed_caller(signer, "", request.state.request_id)


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


def _write_down(request: HTTPConnection, status: int) -> None:
    """Write the audit log's line, with the code of the answered error and the ids of the request's jobs."""
    caller: Caller = request.state.caller
    code: str | None = request.state.error_code
    if code is None and caller.key is None:
        return
    line = audit.info if code is None else audit.warning
    line(
        _outcome(request),
        tenant=caller.tenant,
        key=None if caller.key is None else caller.key.id,
        method=request.scope["method"],
        route=getattr(request.scope.get("route"), "path", "unknown"),
        status=status,
        code=code,
        jobs=[*_jobs_named(request.path_params), *caller.accepted],
        address=request.client.host if request.client else "",
    )


def _outcome(request: HTTPConnection) -> str:
    """What came of a request: it is "refused" if it had no effect, "failed" if its job, or this service, broke."""
    code: str | None = request.state.error_code
    if code is None:
        return "served"
    return "failed" if request.state.caller.accepted or code == DarkroomError.code else "refused"


def _jobs_named(path_params: Mapping[str, str]) -> list[str]:
    """The job that a path names, by itself or in an image's name."""
    named = path_params.get("job_id") or path_params.get("name", "").partition("-")[0]
    return [named] if is_job_id(named) else []
