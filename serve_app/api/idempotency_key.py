"""The header by which a client names a request, so that it may come again: what is a name, and how it is documented."""

import re
from typing import Any

from starlette.requests import Request

from deployments.engine.errors import InvalidRequest

_HEADER = "Idempotency-Key"
_KEY = re.compile(r"[\x20-\x7e]{1,255}", re.ASCII)

# of the routes that know it, for the OpenAPI document
KEY_PARAMETER: dict[str, Any] = {
    "name": _HEADER,
    "in": "header",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "description": "The request's name: however often it comes under it, it is one job.",
}


def idempotency_key(request: Request) -> str | None:
    """The request's name, if it has one. Raises InvalidRequest."""
    names = request.headers.getlist(_HEADER)
    if not names:
        return None
    if len(names) > 1 or _KEY.fullmatch(names[0]) is None:
        raise InvalidRequest("Idempotency-Key must be one header of 1 to 255 printable ASCII characters", _HEADER)
    return names[0]
