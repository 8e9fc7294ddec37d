"""A webhook_url, read once and strictly: what is checked here is what is connected to, no second parser in between."""

import re
from dataclasses import dataclass

from deployments.engine.errors import InvalidRequest
from serve_app.config.webhooks import WebhookSettings

FIELD = "webhook_url"

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?(?P<path>/[!-\[\]-~]*)?",
    re.ASCII,
)
_LONGEST = 2_000
_USUAL_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """Where a webhook goes: `host` is a name or an address, IPv6 without brackets; `path` has the query."""

    scheme: str
    host: str
    port: int
    path: str


def target_of(url: str, settings: WebhookSettings) -> Target:
    """Raises InvalidRequest for whatever isn't a plain URL of an allowed host; the URL isn't repeated."""
    if not settings.on:
        raise InvalidRequest(f"{FIELD}: this service calls no webhooks: its webhooks.allowed_hosts is empty", FIELD)
    schemes = "http:// or https://" if settings.allow_http else "https://"
    found = _URL.fullmatch(url) if len(url) <= _LONGEST else None
    if found is None or "#" in url or (found["scheme"] == "http" and not settings.allow_http):
        raise InvalidRequest(
            f"{FIELD} must be {schemes}host/path in ASCII, the host in lower case, without user, password or fragment, "
            f"of at most {_LONGEST} characters",
            FIELD,
        )
    usual_port = _USUAL_PORTS[found["scheme"]]
    port = usual_port if found["port"] is None else int(found["port"])
    if not settings.allows(found["host"], port, usual_port):
        raise InvalidRequest(f"{FIELD}: the service's webhooks.allowed_hosts doesn't have its host and port", FIELD)
    return Target(found["scheme"], found["host"].strip("[]"), port, found["path"] or "/")
