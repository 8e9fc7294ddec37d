"""A running service over HTTP, as one caller sees it: JSON in, JSON out, every trouble a Failure.

Knows the native API's manners (errors, event streams, addresses in answers), not what its calls are for.
"""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self
from urllib.parse import urljoin

import httpx

from serve_app.cli.failure import Failure

_CONNECT_S = 10.0
_ANSWER_S = 60.0

_HINTS = {
    "unauthenticated": "give a key with --key or DARKROOM_API_KEY",
    "unknown_model": "`darkroom models list` shows what there is",
    "unknown_job": "`darkroom jobs` shows what there is",
}


class Event(NamedTuple):
    """A server-sent event."""

    name: str
    data: dict[str, Any]


class Service:
    """The service at `url`; a context manager. Every call raises Failure."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url
        self._http = httpx.AsyncClient(
            base_url=url,
            headers={} if key is None else {"authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(_ANSWER_S, connect=_CONNECT_S),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def get(self, path: str, **query: str | int) -> dict[str, Any]:
        """The answer to GET."""
        return await self._call("GET", path, params=query)

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to POST."""
        return await self._call("POST", path, json=body)

    async def delete(self, path: str) -> dict[str, Any]:
        """The answer to DELETE."""
        return await self._call("DELETE", path)

    async def file(self, address: str) -> bytes:
        """What lies at an address that the service gave."""
        with self._troubles():
            response = await self._http.get(self._resolved(address))
            self._check(response)
            return response.content

    async def events(self, address: str) -> AsyncIterator[Event]:
        """The events at an address that the service gave, until it ends the stream; however long it is silent."""
        silence = httpx.Timeout(_ANSWER_S, connect=_CONNECT_S, read=None)
        with self._troubles():
            async with self._http.stream("GET", self._resolved(address), timeout=silence) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                self._check(response)
                async for block in _blocks(response):
                    fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if not line.startswith(b":"))
                    if fields:
                        yield Event(fields[b"event"].decode(), json.loads(fields[b"data"]))

    async def _call(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        with self._troubles():
            response = await self._http.request(method, path, **content)
            self._check(response)
            answer = _json_object(response)
        if answer is None:
            raise self._stranger(response)
        return answer

    def _resolved(self, address: str) -> str:
        """Addresses in answers begin with the path that the service is mounted at."""
        return urljoin(f"{self._url}/", address)

    def _check(self, response: httpx.Response) -> None:
        """Raise Failure if it isn't an answer to build on; its body must have been read."""
        if response.is_success:
            return
        error = (_json_object(response) or {}).get("error")
        if not isinstance(error, dict) or not isinstance(error.get("message"), str):
            raise self._stranger(response)
        code = str(error.get("code"))
        later = response.headers.get("retry-after")
        hint = f"worth another try in {later} s" if later else _HINTS.get(code)
        message = f"{error['message']} ({hint})" if hint else error["message"]
        raise Failure(code, f"{response.status_code}: {message}", error.get("field"))

    def _stranger(self, response: httpx.Response) -> Failure:
        path = response.request.url.path
        return Failure(
            "not_darkroom",
            f"{self._url} answers {path} with {response.status_code} and not as Darkroom does: is this its address, "
            "and has it started?",
        )

    @contextmanager
    def _troubles(self) -> Iterator[None]:
        """httpx's errors as failures."""
        try:
            yield
        except httpx.ConnectError as error:
            raise Failure(
                "unreachable", f"no service answers at {self._url} ({error}); `darkroom serve` starts one here"
            ) from None
        except httpx.TimeoutException:
            raise Failure("unreachable", f"{self._url} doesn't answer") from None
        except httpx.HTTPError as error:
            raise Failure("connection_lost", f"the connection to {self._url} broke: {error}") from None


async def _blocks(response: httpx.Response) -> AsyncIterator[bytes]:
    """What stands between empty lines. On bytes: texts in the data may hold what Python calls ends of lines."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *blocks, rest = (rest + chunk).split(b"\n\n")
        for block in blocks:
            yield block


def _json_object(response: httpx.Response) -> dict[str, Any] | None:
    try:
        content = response.json()
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
