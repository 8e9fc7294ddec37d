"""How the C2PA library is set up: whatever a file says, nothing is asked of the network for it."""

from typing import Any

import c2pa

_NO_NETWORK: dict[str, Any] = {
    "core": {"allowed_network_hosts": []},
    "verify": {"verify_after_sign": False, "remote_manifest_fetch": False, "ocsp_fetch": False},
}


def reading_context(anchors: str) -> c2pa.Context:
    """For reading files. anchors: certificates of the authorities that are trusted, PEM; empty for none."""
    return c2pa.Context.from_dict(_NO_NETWORK | {"trust": {"trust_anchors": anchors or None}})


def writing_context() -> c2pa.Context:
    """For signing files, without the thumbnails that would take tens of KB and a decode each."""
    return c2pa.Context.from_dict(_NO_NETWORK | {"builder": {"thumbnail": {"enabled": False}}})
