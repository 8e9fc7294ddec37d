"""The sender of a request: what it may do and see, and what tells its options from another's.

With API keys a caller is the key's tenant and the user name of HTTP Basic, so that people who share a key can each have
A1111's options. Without keys callers are told apart by their Authorization header or else by their address: that keeps
well-meaning clients apart, and nobody out.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from serve_app.auth.key_file import ApiKey, Scope

# what stands behind "Basic" when both the name and the password are empty (":")
_NOBODY = ("", "Og==")

_EVERY_SCOPE = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of one request.

    Attributes:
        name: identifies the caller's own data, such as A1111's options; without credentials.
        request_id: of the request.
        key: that was sent; None without keys, or if none was needed.
        scopes: what the caller may do.
        accepted: ids of the jobs of this request, for the audit log.
    """

    name: str
    request_id: str
    key: ApiKey | None = None
    scopes: frozenset[Scope] = frozenset()
    accepted: list[str] = field(default_factory=list)

    @property
    def tenant(self) -> str:
        """Whose the caller's jobs are: the key's tenant's; "" without keys."""
        return "" if self.key is None else self.key.tenant

    @property
    def sees(self) -> str | None:
        """The tenant whose jobs and images the caller may see; None for an admin's key, which may see all."""
        return None if self.key is not None and Scope.ADMIN in self.key.scopes else self.tenant

    def may(self, scope: Scope) -> bool:
        """The caller may do what the scope allows."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


@dataclass(frozen=True, slots=True)
class Credentials:
    """The unchecked credentials of a request: HTTP Basic's user, and the key, "" if there is none."""

    user: str
    key: str = field(repr=False)


def credentials_of(request: HTTPConnection) -> Credentials:
    """The key that a request comes with.

    From `Authorization: Bearer KEY`, `Authorization: Basic` (its password is the key), `X-API-Key: KEY` or Azure's
    `api-key: KEY`. An empty Authorization header counts as none.
    """
    scheme, _, value = request.headers.get("authorization", "").strip().partition(" ")
    value = value.strip()
    if value not in _NOBODY:
        match scheme.lower():
            case "bearer":
                return Credentials("", value)
            case "basic":
                return _basic(value)
            case _:
                return Credentials("", "")
    return Credentials("", (request.headers.get("x-api-key") or request.headers.get("api-key", "")).strip())


def keyed_caller(key: ApiKey, user: str, request_id: str) -> Caller:
    """The caller of a valid key."""
    return Caller(f"tenant:{key.tenant}:{user[:64]}", request_id, key, key.scopes)


def unkeyed_caller(request: HTTPConnection, request_id: str) -> Caller:
    """Anybody, where there are no keys: may do everything."""
    return Caller(_unproven_name(request), request_id, None, _EVERY_SCOPE)


def batch_caller(request_id: str) -> Caller:
    """Whoever sent a batch, where there are no keys."""
    return Caller("batch", request_id, None, _EVERY_SCOPE)


def unknown_caller(request: HTTPConnection, request_id: str) -> Caller:
    """A caller without a valid key where there are keys: may do nothing that needs one."""
    return Caller(_unproven_name(request), request_id)


def _basic(value: str) -> Credentials:
    try:
        user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return Credentials("", "")
    return Credentials(user, password)


def _unproven_name(request: HTTPConnection) -> str:
    header = request.headers.get("authorization", "").strip()
    credentials = header.partition(" ")[2].strip()
    if credentials not in _NOBODY:
        return f"credentials:{hashlib.sha256(header.encode()).hexdigest()}"
    return f"address:{request.client.host if request.client else ''}"
