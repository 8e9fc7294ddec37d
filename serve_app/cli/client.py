"""A client of a running service's native API: running a job with it, waiting for one, saving its images."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urljoin

import httpx

from serve_app.cli.image_files import ImageFiles
from serve_app.cli.output import Failure, ProgressBar, say
from serve_app.jobs.job import is_job_id
from serve_app.jobs.states import JobState

# digits of a short id; an id's last ones are random
SHORT_ID = 8

_CONNECT_S = 10.0
_ANSWER_S = 60.0

# of an upload: how much is read at once, and the longest silence in seconds
_PART, _UPLOAD_S = 1 << 20, 600.0

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

    async def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to PATCH."""
        return await self._call("PATCH", path, json=body)

    async def put(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to PUT."""
        return await self._call("PUT", path, json=body)

    async def upload(self, path: str, file: Path, **query: str | int) -> dict[str, Any]:
        """The answer to PUT with a file's bytes."""

        async def parts() -> AsyncIterator[bytes]:
            with file.open("rb") as opened:
                while part := opened.read(_PART):
                    yield part

        try:
            status = await asyncio.to_thread(file.stat)
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(status.st_size)}
            return await self._call("PUT", path, params=query, content=parts(), headers=headers, timeout=_UPLOAD_S)
        except OSError as error:
            raise Failure("not_read", str(error)) from None

    async def delete(self, path: str) -> dict[str, Any]:
        """The answer to DELETE."""
        return await self._call("DELETE", path)

    async def job_id(self, written: str) -> str:
        """The id of the job that a user names by it, or by its end. Raises Failure unless it is one job's."""
        written = written.lower()
        if is_job_id(written):
            return written
        jobs = (await self.get("/jobs", id=written, limit=2))["jobs"]
        if not jobs:
            raise Failure("unknown_job", f"no job's id ends with {written!r} ({_HINTS['unknown_job']})")
        if len(jobs) > 1:
            raise Failure("ambiguous_id", f"several jobs' ids end with {written!r}: give more digits")
        job_id: str = jobs[0]["job_id"]
        return job_id

    async def file(self, address: str) -> bytes:
        """The content of a URL from one of the service's answers."""
        with self._http_failures():
            response = await self._http.get(self._resolved(address))
            self._check(response)
            return response.content

    async def download(self, path: str, file: Path) -> None:
        """Write what the service has at a path into a file, part by part."""
        partial = file.with_name(f"{file.name}.part")
        with self._http_failures():
            async with self._http.stream("GET", path) as response:
                if not response.is_success:
                    await response.aread()
                self._check(response)
                try:
                    with partial.open("wb") as out:
                        async for part in response.aiter_bytes():
                            out.write(part)
                    partial.replace(file)
                except OSError as error:
                    raise Failure("not_written", str(error)) from None
                finally:
                    partial.unlink(missing_ok=True)

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
        raise Failure(code, f"{response.status_code}: {message}", error.get("field"), document={"error": error})

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


def short(job_id: str) -> str:
    """The end of a job's id, by which every command knows it."""
    return job_id[-SHORT_ID:]


async def run(
    service: Service, request: dict[str, Any], wait_s: float | None, path: str = "/generate"
) -> dict[str, Any]:
    """Run a job with a progress bar. Cancelling the task cancels the job.

    Args:
        service: the service.
        request: the body of the request.
        wait_s: seconds to wait for the end of the job; None for any time.
        path: where the request is posted.

    Returns:
        The job as GET /result shows it.

    Raises:
        Failure: the request was refused, or the job hasn't ended within `wait_s`; it then continues.
    """
    accepting = asyncio.ensure_future(service.post(path, request))
    try:
        accepted = await asyncio.shield(accepting)
        return await ended(service, accepted, wait_s)
    except asyncio.CancelledError:
        accepted = await accepting  # otherwise a request on its way would leave a job that nobody waits for
        await service.delete(f"/jobs/{accepted['job_id']}")
        say(f"job {short(accepted['job_id'])} is cancelled")
        raise


async def ended(service: Service, job: dict[str, Any], wait_s: float | None) -> dict[str, Any]:
    """Wait for the end of a job with a progress bar.

    Args:
        service: the service.
        job: in any of the service's forms.
        wait_s: seconds to wait; None for any time.

    Returns:
        The job as GET /result shows it.

    Raises:
        Failure: the job hasn't ended within `wait_s`, or the stream of its events has.
    """
    try:
        with ProgressBar() as bar:
            async with asyncio.timeout(wait_s):
                return await _follow(service, job, bar)
    except TimeoutError:
        raise _still_there(
            "wait_timed_out", job, f"job {short(job['job_id'])} isn't done after {wait_s:g} s and continues"
        ) from None


async def save_images(service: Service, job: dict[str, Any], files: ImageFiles) -> None:
    """Fetch and write the images of a job that has ended, and note each one's `file`. Raises Failure."""
    name = short(job["job_id"])
    for image in job["images"]:
        data = None if image["url"] is None else await service.file(image["url"])
        try:
            image["file"] = files.write(name, image, len(job["images"]), data)
        except Failure as failure:
            message = f"{failure.message} (the service has the image: `darkroom result {name}` fetches it)"
            raise Failure(failure.code, message, job_id=job["job_id"]) from None


async def _follow(service: Service, job: dict[str, Any], bar: ProgressBar) -> dict[str, Any]:
    async for name, data in service.events(job["links"]["events"]):
        if name in _ENDS:
            return data
        if name == "queued":
            bar.update(f"queued, position {data['position']}", 0, None, data["eta_seconds"])
        elif name == "progress":
            activity = "drawing" if data["status"] == "running" else "queued"
            bar.update(activity, data["step"], data["steps"] or None, data["eta_seconds"])
        elif name == "error":
            error = data["error"]
            raise Failure(error["code"], f"job {short(job['job_id'])}: {error['message']}", job_id=job["job_id"])
    message = f"the service ended the stream of job {short(job['job_id'])} before its end"
    raise _still_there("connection_lost", job, message)


def _still_there(code: str, job: dict[str, Any], message: str) -> Failure:
    """A failure that isn't the job's."""
    name = short(job["job_id"])
    hint = f"`darkroom wait {name}` waits for its end, `darkroom result {name}` fetches its images"
    return Failure(code, f"{message}; {hint}", job_id=job["job_id"])
