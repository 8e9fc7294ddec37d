"""Connections to addresses that were looked at: a name is resolved here, and the address that was judged is dialled.

Nothing resolves it a second time, so a name that changes its answer in between changes nothing. Knows no webhook.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Iterable

import httpcore

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


class CheckedNetwork(httpcore.AsyncNetworkBackend):
    """httpcore's way to the network. allow_private: every address may be connected to."""

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """To the first of the host's addresses that may be and can be connected to. Raises AddressRefused."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:  # (also of a name that is none)
            raise httpcore.ConnectError("the host's name can't be resolved") from error
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        allowed = [one for one in addresses if self._allow_private or is_public(one)]
        if not allowed:
            raise AddressRefused(f"none of its {len(addresses)} addresses is a public one")
        for number, address in enumerate(allowed, 1):
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore.NetworkError:
                if number == len(allowed):
                    raise
        raise AssertionError("there was an address")

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109  # httpcore's interface
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Never. Raises AddressRefused."""
        raise AddressRefused("a socket of this machine")

    async def sleep(self, seconds: float) -> None:
        """As asyncio's."""
        await asyncio.sleep(seconds)
