"""API keys: their form, their file, and whose a presented one is.

A key is `dk_<id>_<secret>`: the id finds its line, the secret is 256 random bits. The file holds, a line for each,

    <id> <tenant> <scope,scope> sha256:<64 hexadecimal digits>      # a remark

A fast hash is right for such keys: 256 random bits can't be searched, whatever a guess costs. The slow ones (Argon2,
bcrypt) are for passwords that people choose; here they would let anybody spend our processor's time with made-up keys.
"""

import enum
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from serve_app.config.access import AccessSettings
from serve_app.config.secret_lines import TENANT, read_lines
from serve_app.observability.logs import get_logger

log = get_logger(__name__)

_KEY = re.compile(r"dk_([0-9a-f]{8})_[A-Za-z0-9_-]{43}", re.ASCII)
_ID = re.compile(r"[0-9a-f]{8}", re.ASCII)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)
_TENANTS = "a tenant has 1 to 64 of A-Z, a-z, 0-9, '.', '_', '-'"

# what an unknown id's key is compared with, so that it takes as long as a known one's
_NO_DIGEST = bytes(32)


class Scope(enum.StrEnum):
    """What a key may do. ADMIN: everything, and for every tenant."""

    GENERATE = "generate"
    READ = "read"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A line of the file; `digest` is the SHA-256 of the whole key. It signs links, so it isn't shown."""

    id: str
    tenant: str
    scopes: frozenset[Scope]
    digest: bytes = field(repr=False)


class BadKeys(ValueError):
    """The keys can't be read; the message names the line, never what is in it."""


def new_key(tenant: str, scopes: frozenset[Scope]) -> tuple[str, str]:
    """A new key, and the line for the file. Raises BadKeys for a tenant or scopes that the file couldn't hold."""
    if TENANT.fullmatch(tenant) is None:
        raise BadKeys(_TENANTS)
    key_id = secrets.token_hex(4)
    key = f"dk_{key_id}_{secrets.token_urlsafe(32)}"
    named = ",".join(scope for scope in Scope if scope in scopes)
    line = f"{key_id} {tenant} {named} sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    parse_keys(line)
    return key, line


def parse_keys(text: str) -> Mapping[str, ApiKey]:
    """The keys of a file by their ids. Raises BadKeys."""
    found: dict[str, ApiKey] = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 4:
            raise BadKeys(f"line {number}: not `id tenant scopes sha256:digest`")
        key_id, tenant, scopes, hashed = words
        digest = _DIGEST.fullmatch(hashed)
        if _ID.fullmatch(key_id) is None or digest is None:
            raise BadKeys(f"line {number}: the id has 8 and the digest 64 hexadecimal digits")
        if TENANT.fullmatch(tenant) is None:
            raise BadKeys(f"line {number}: {_TENANTS}")
        if key_id in found:
            raise BadKeys(f"line {number}: the id stands twice")
        try:
            named = frozenset(Scope(scope) for scope in scopes.split(","))
        except ValueError:
            raise BadKeys(f"line {number}: scopes are {', '.join(Scope)}, with commas between") from None
        found[key_id] = ApiKey(key_id, tenant, named, bytes.fromhex(digest[1]))
    return MappingProxyType(found)


class KeyRing:
    """The valid keys. A file is read again, at most every reload_s seconds, at the next request.

    A changed file that can't be read, or holds a mistake, changes nothing: the keys before it stay valid, and the log
    says why. Raises BadKeys at the start, also if there is no key at all, as nobody could use the service.
    """

    def __init__(self, settings: AccessSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._path = settings.keys_file
        self._reload_s = settings.reload_s
        self._clock = clock
        self._looked_at = clock()
        self._stamp = None if self._path is None else _stamp(self._path)
        self._keys = parse_keys(_text(settings))
        if not self._keys:
            raise BadKeys(f"{_source(settings)} holds no key: `darkroom keys make TENANT` makes one")

    def find(self, presented: str) -> ApiKey | None:
        """The key that was presented, if it is one of ours; compared in constant time."""
        form = _KEY.fullmatch(presented)
        if form is None:
            return None
        key = self.by_id(form[1])
        digest = hashlib.sha256(presented.encode()).digest()
        same = hmac.compare_digest(digest, _NO_DIGEST if key is None else key.digest)
        return key if same else None

    def by_id(self, key_id: str) -> ApiKey | None:
        """The key of an id, if it is still valid; that doesn't authenticate a caller."""
        self._look()
        return self._keys.get(key_id)

    def _look(self) -> None:
        now = self._clock()
        if self._path is None or now - self._looked_at < self._reload_s:
            return
        self._looked_at = now
        try:
            stamp = _stamp(self._path)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._keys = parse_keys(_text(self._settings))
        except BadKeys as error:
            log.error("the keys were not read again: those before stay good", reason=str(error))  # noqa: TRY400
        else:
            log.info("the keys were read again", number=len(self._keys))


def _source(settings: AccessSettings) -> str:
    return f"access.keys_env {settings.keys_env}" if settings.keys_file is None else str(settings.keys_file)


def _text(settings: AccessSettings) -> str:
    return read_lines(settings.keys_file, settings.keys_env, setting="access.keys_env", error=BadKeys)


def _stamp(path: Path) -> tuple[int, int, int]:
    """Changes when the file does."""
    try:
        seen = path.stat()
    except OSError as error:
        raise BadKeys(f"{path}: {error.strerror}") from error
    return seen.st_mtime_ns, seen.st_size, seen.st_ino
