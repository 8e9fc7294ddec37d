"""One call of a receiver: POST, and the status that comes back.

A name is resolved here, and the address that was judged is dialled. Nothing resolves it a second time, so a name that
changes its answer in between changes nothing. No redirect is followed, no body is read, no proxy is asked, no cookie
kept.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import httpcore

from serve_app.config.webhooks import WebhookSettings
from serve_app.webhooks.target import Target

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class AddressRefused(Exception):
    """The host has no address that may be connected to."""


def is_public(address: str) -> bool:
    """It is the public internet's, also as seen through an IPv6 address that stands for an IPv4 one."""
    ip: _Address = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if inner is not None:
            ip = inner
        elif ip.teredo is not None or ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


# what a call dies of that isn't a bug of ours
_FAILURES = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, AddressRefused, OSError)


@dataclass(frozen=True, slots=True)
class Answer:
    """The result of a call: the HTTP status, or None and the reason in `failure`."""

    status: int | None
    failure: str = ""

    @property
    def taken(self) -> bool:
        """The receiver has it."""
        return self.status is not None and 200 <= self.status < 300


class Sender:
    """Calls receivers. Belongs to one event loop."""

    def __init__(self, settings: WebhookSettings) -> None:
        self._timeout_s = settings.timeout_s
        self._allow_private = settings.allow_private_addresses
        self._tls = None if settings.ca_file is None else ssl.create_default_context(cafile=settings.ca_file)

    async def post(self, target: Target, headers: Mapping[str, str], body: bytes) -> Answer:
        """One call, within timeout_s from the look-up of the name to the head of the answer."""
        named = f"[{target.host}]" if ":" in target.host else target.host
        usual = target.port == (443 if target.scheme == "https" else 80)
        heads = {"Host": named if usual else f"{named}:{target.port}", "Content-Length": str(len(body)), **headers}
        try:
            async with asyncio.timeout(self._timeout_s):
                *others, last = await self._addresses(target)
                for address in others:
                    with suppress(httpcore.ConnectError):  # the next one may take it
                        return await self._call(address, target, heads, body)
                return await self._call(last, target, heads, body)
        except TimeoutError:
            return Answer(None, f"no answer within {self._timeout_s:g} s")
        except _FAILURES as error:
            return Answer(None, f"{type(error).__name__}: {error}"[:200])

    async def _addresses(self, target: Target) -> Sequence[str]:
        """The host's addresses that may be connected to, one at least. Raises AddressRefused."""
        try:
            infos = await asyncio.get_running_loop().getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except OSError as error:  # (also of a name that is none)
            raise AddressRefused("the host's name can't be resolved") from error
        addresses = list(dict.fromkeys(str(info[4][0]) for info in infos))
        allowed = [address for address in addresses if self._allow_private or is_public(address)]
        if not allowed:
            raise AddressRefused(f"none of the host's {len(addresses)} addresses is a public one")
        return allowed

    async def _call(self, address: str, target: Target, heads: Mapping[str, str], body: bytes) -> Answer:
        """At one address, where a certificate has to be the host's."""
        url = httpcore.URL(
            scheme=target.scheme.encode(), host=address.encode(), port=target.port, target=target.path.encode()
        )
        sni = {"sni_hostname": target.host}
        async with (
            # a connection of its own: what was judged for another call isn't used again
            httpcore.AsyncConnectionPool(ssl_context=self._tls, max_connections=1, max_keepalive_connections=0) as pool,
            pool.stream("POST", url, headers=list(heads.items()), content=body, extensions=sni) as response,
        ):
            return Answer(response.status)
