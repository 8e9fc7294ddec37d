"""Who is asking, as long as there are no API keys: what tells one client's work and choices from another's.

A caller is whoever sends the same Authorization header; without one, whoever comes from the same address. Nothing
is checked: this keeps well-meaning clients apart, it keeps nobody out.
"""

import hashlib

from starlette.requests import Request

# what stands behind "Basic" when both the name and the password are empty (":")
_NOBODY = ("", "Og==")


def caller_of(request: Request) -> str:
    """The caller's key; credentials don't appear in it. An empty Authorization header counts as none."""
    header = request.headers.get("authorization", "").strip()
    credentials = header.partition(" ")[2].strip()
    if credentials not in _NOBODY:
        return f"credentials:{hashlib.sha256(header.encode()).hexdigest()}"
    return f"address:{request.client.host if request.client else ''}"
