"""Addresses of images that work for a while without a key: an <img> tag sends no headers.

    /images/<name>?key=<id>&expires=<unix seconds>&signature=<HMAC-SHA256>

The signature is made with the digest of the caller's key, so that every router can check it, a restart forgets none,
and a revoked key's links end with it. It is valid for one image. Signed by hand: itsdangerous puts the time of signing
into each, so that no address would come twice and browsers would cache none.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from serve_app.auth.key_file import ApiKey

_EXPIRES = re.compile(r"[1-9][0-9]{0,14}", re.ASCII)


def link_query(name: str, key: ApiKey, now: float, at_least_s: int) -> str:
    """The query of an image's address; good for `at_least_s` to twice as many seconds, and in that time the same."""
    expires = (int(now) // at_least_s + 2) * at_least_s
    return f"key={key.id}&expires={expires}&signature={_signature(name, key, expires)}"


@dataclass(frozen=True, slots=True)
class ImageLink:
    """The unchecked parts of a signed address; `key_id` is of the key that it claims to be signed with."""

    key_id: str
    expires: int
    signature: str

    @classmethod
    def parse(cls, query: str) -> "ImageLink | None":
        """The link in a query; None where there is none."""
        try:
            fields = dict(parse_qsl(query, max_num_fields=3))
        except ValueError:  # more fields than a link has
            return None
        if fields.keys() != {"key", "expires", "signature"} or _EXPIRES.fullmatch(fields["expires"]) is None:
            return None
        return cls(fields["key"], int(fields["expires"]), fields["signature"])

    def holds(self, name: str, key: ApiKey, now: float) -> bool:
        """It was made for this image with this key, and its time isn't over."""
        signed = hmac.compare_digest(self.signature.encode(), _signature(name, key, self.expires).encode())
        return signed and now < self.expires


def _signature(name: str, key: ApiKey, expires: int) -> str:
    return hmac.new(key.digest, f"darkroom image link\n{name}\n{expires}".encode(), hashlib.sha256).hexdigest()
