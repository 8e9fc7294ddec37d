"""One call of a receiver: POST, and the status that comes back.

No redirect is followed, no body is read, no proxy is asked, no cookie kept.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

import httpcore

from serve_app.config.webhooks import WebhookSettings
from serve_app.webhooks.addresses import AddressRefused, CheckedNetwork
from serve_app.webhooks.target import Target

# what a call dies of that isn't a bug of ours
_FAILURES = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, AddressRefused, OSError)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a call. status: HTTP's, None where none came. failure: why, in words; "" where one came."""

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
        self._network = CheckedNetwork(allow_private=settings.allow_private_addresses)
        self._tls = None if settings.ca_file is None else ssl.create_default_context(cafile=settings.ca_file)

    async def post(self, target: Target, headers: Mapping[str, str], body: bytes) -> Answer:
        """One call, within timeout_s from the look-up of the name to the head of the answer."""
        named = f"[{target.host}]" if ":" in target.host else target.host
        url = httpcore.URL(
            scheme=target.scheme.encode(), host=named.encode(), port=target.port, target=target.path.encode()
        )
        usual = target.port == (443 if target.scheme == "https" else 80)
        heads = {"Host": named if usual else f"{named}:{target.port}", "Content-Length": str(len(body)), **headers}
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                # a connection of its own: what was judged for another call isn't used again
                httpcore.AsyncConnectionPool(
                    ssl_context=self._tls, max_connections=1, max_keepalive_connections=0, network_backend=self._network
                ) as pool,
                pool.stream("POST", url, headers=list(heads.items()), content=body) as response,
            ):
                return Answer(response.status)
        except TimeoutError:
            return Answer(None, f"no answer within {self._timeout_s:g} s")
        except _FAILURES as error:
            return Answer(None, f"{type(error).__name__}: {error}"[:200])
