"""A client of a running service's native API, and running one job with it."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self
from urllib.parse import urljoin

import httpx

from serve_app.cli.output import Failure, ProgressBar, say
from serve_app.jobs.states import JobState

_CONNECT_S = 10.0
_ANSWER_S = 60.0

_HINTS = {
    "unauthenticated": "give a key with --key or DARKROOM_API_KEY",
    "unknown_model": "`darkroom models list` shows the models",
    "unknown_job": "`darkroom jobs` lists the jobs",
}


_ENDS = tuple(state for state in JobState if state.terminal)


class Event(NamedTuple):
    """A server-sent event."""

    name: str
    data: dict[str, Any]


class Service:
    """The service at `url`, as a context manager. Every call may raise Failure."""

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
        """The content of a URL from one of the service's answers."""
        with self._http_failures():
            response = await self._http.get(self._resolved(address))
            self._check(response)
            return response.content

    async def events(self, address: str) -> AsyncIterator[Event]:
        """The events at a URL from one of the service's answers, until the service ends the stream."""
        silence = httpx.Timeout(_ANSWER_S, connect=_CONNECT_S, read=None)
        with self._http_failures():
            async with self._http.stream("GET", self._resolved(address), timeout=silence) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                self._check(response)
                async for block in _blocks(response):
                    fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if not line.startswith(b":"))
                    if fields:
                        yield Event(fields[b"event"].decode(), json.loads(fields[b"data"]))

    async def _call(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        with self._http_failures():
            response = await self._http.request(method, path, **content)
            self._check(response)
            answer = _json_object(response)
        if answer is None:
            raise self._not_darkroom(response)
        return answer

    def _resolved(self, address: str) -> str:
        """URLs in answers begin with the path that the service is mounted at."""
        return urljoin(f"{self._url}/", address)

    def _check(self, response: httpx.Response) -> None:
        """Raise Failure unless the response is a success. Its body must have been read."""
        if response.is_success:
            return
        error = (_json_object(response) or {}).get("error")
        if not isinstance(error, dict) or not isinstance(error.get("message"), str):
            raise self._not_darkroom(response)
        code = str(error.get("code"))
        later = response.headers.get("retry-after")
        hint = f"try again in {later} s" if later else _HINTS.get(code)
        message = f"{error['message']} ({hint})" if hint else error["message"]
        raise Failure(code, f"{response.status_code}: {message}", error.get("field"))

    def _not_darkroom(self, response: httpx.Response) -> Failure:
        path = response.request.url.path
        return Failure(
            "not_darkroom",
            f"{self._url} answered {path} with {response.status_code}, not in Darkroom's form: is the address right, "
            "and has the service started?",
        )

    @contextmanager
    def _http_failures(self) -> Iterator[None]:
        """Raise httpx's errors as failures."""
        try:
            yield
        except httpx.ConnectError as error:
            raise Failure(
                "unreachable", f"no service answers at {self._url} ({error}); `darkroom serve` starts one here"
            ) from None
        except httpx.TimeoutException:
            raise Failure("unreachable", f"{self._url} doesn't answer in time") from None
        except httpx.HTTPError as error:
            raise Failure("connection_lost", f"the connection to {self._url} broke: {error}") from None


async def _blocks(response: httpx.Response) -> AsyncIterator[bytes]:
    """The parts between empty lines. On bytes, because texts may contain what str.splitlines() takes for line ends."""
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


async def run_and_save(
    service: Service,
    request: dict[str, Any],
    wait_s: float | None,
    save: Callable[[dict[str, Any], dict[str, Any], bytes | None], str | None],
    path: str = "/generate",
) -> dict[str, Any]:
    """Run a job with a progress bar and save its images. Cancelling the task cancels the job.

    Args:
        service: the service.
        request: the body of the request.
        wait_s: seconds to wait for the end of the job; None for any time.
        save: writes an image of the job (None where it was withheld) and returns its file's name.
        path: where the request is posted.

    Returns:
        The job as GET /result shows it, with the `file` of each image.

    Raises:
        Failure: the job failed, or hasn't ended within `wait_s`; it then continues.
    """
    try:
        with ProgressBar() as bar:
            job = await _ended(service, request, wait_s, bar, path)
    except asyncio.CancelledError:
        say("the job is cancelled")
        raise
    for image in job["images"]:
        data = None if image["url"] is None else await service.file(image["url"])
        image["file"] = save(job, image, data)
    return job


async def _ended(
    service: Service, request: dict[str, Any], wait_s: float | None, bar: ProgressBar, path: str
) -> dict[str, Any]:
    accepting = asyncio.ensure_future(service.post(path, request))
    try:
        accepted = await asyncio.shield(accepting)
        async with asyncio.timeout(wait_s):
            return await _follow(service, accepted, bar)
    except TimeoutError:
        raise Failure(
            "wait_timed_out",
            f"job {accepted['job_id']} isn't done after {wait_s:g} s and continues; `darkroom jobs` shows its state",
        ) from None
    except asyncio.CancelledError:
        accepted = await accepting  # otherwise a request on its way would leave a job that nobody waits for
        await service.delete(f"/jobs/{accepted['job_id']}")
        raise


async def _follow(service: Service, accepted: dict[str, Any], bar: ProgressBar) -> dict[str, Any]:
    async for name, data in service.events(accepted["links"]["events"]):
        if name in _ENDS:
            return data
        if name == "queued":
            bar.update(f"queued, position {data['position']}", 0, None)
        elif name == "progress":
            bar.update("drawing" if data["status"] == "running" else "queued", data["step"], data["steps"] or None)
        elif name == "error":
            raise Failure(data["error"]["code"], f"job {accepted['job_id']}: {data['error']['message']}")
    raise Failure(
        "connection_lost",
        f"the service ended the stream of job {accepted['job_id']} before its end; `darkroom jobs` shows its state",
    )
