"""One job on a running service, from the request to its end and its images. Knows no names of files."""

import asyncio
from collections.abc import Callable
from typing import Any

from serve_app.cli.failure import Failure
from serve_app.cli.progress_bar import ProgressBar
from serve_app.cli.service import Service
from serve_app.cli.terminal import say
from serve_app.jobs.states import JobState

_ENDS = tuple(state for state in JobState if state.terminal)


async def run_and_save(
    service: Service,
    request: dict[str, Any],
    wait_s: float | None,
    save: Callable[[dict[str, Any], dict[str, Any], bytes | None], str | None],
    path: str = "/generate",
) -> dict[str, Any]:
    """The ended job as GET /result shows it, with each image's `file`, under a progress bar.

    save: writes an image of the job, None where it was withheld, and tells its file's name. path: where the
    request is posted. A cancelled task cancels the job. Raises Failure, also where the job hasn't ended within `wait_s`
    seconds: it then goes on.
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
            f"job {accepted['job_id']} isn't done after {wait_s:g} s, and goes on; `darkroom jobs` tells how it fares",
        ) from None
    except asyncio.CancelledError:
        accepted = await accepting  # a request that was under way would leave a job that nobody waits for
        await service.delete(f"/jobs/{accepted['job_id']}")
        raise


async def _follow(service: Service, accepted: dict[str, Any], bar: ProgressBar) -> dict[str, Any]:
    async for name, data in service.events(accepted["links"]["events"]):
        if name in _ENDS:
            return data
        if name == "queued":
            bar.move(f"queued, place {data['position']}", 0, None)
        elif name == "progress":
            bar.move("drawing" if data["status"] == "running" else "queued", data["step"], data["steps"] or None)
        elif name == "error":
            raise Failure(data["error"]["code"], f"job {accepted['job_id']}: {data['error']['message']}")
    raise Failure(
        "connection_lost",
        f"the service ended the stream of job {accepted['job_id']} before its end; `darkroom jobs` tells how it fares",
    )
