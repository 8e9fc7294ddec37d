"""Waits with a client for its job's end, which is images or an error.

A dialect that answers with the images themselves holds the request until the job ends. Such a client never learns the
job's id, so it couldn't fetch the result later: when it goes, its job is cancelled, unless the request has an
Idempotency-Key, or a retry of it may come (openai/retries.py).
"""

import asyncio
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request

from deployments.engine.errors import Cancelled, DarkroomError
from serve_app.api.http_status import STATUS
from serve_app.api.native.job_view import BLOCKED_MESSAGE
from serve_app.api.service import Service
from serve_app.errors import ImagesWithheld
from serve_app.image_store.store import ImageName
from serve_app.jobs.job import Job
from serve_app.jobs.states import JobState
from serve_app.observability.logs import get_logger
from serve_app.schemas.manifest import Manifest

log = get_logger(__name__)

# what becomes of the job of that id when its client has gone
Left = Callable[[Service, str], Coroutine[Any, Any, None]]

# tasks that nobody awaits need somebody who holds them
_clearing: set[asyncio.Task[None]] = set()

_BY_CODE = {cls.code: cls for cls in STATUS}


@dataclass(frozen=True, slots=True)
class ShownImage:
    """An image that may be seen.

    Attributes:
        name: of its file.
        size: "WIDTHxHEIGHT" in pixels.
        seed: of the image.
        manifest: of the image.
    """

    name: ImageName
    size: str
    seed: int
    manifest: Manifest


async def cancelled(service: Service, job_id: str) -> None:
    """A Left: cancel the job, as nobody waits for it."""
    try:
        await service.cancel(job_id)
    except DarkroomError as error:
        log.warning("a job without a client could not be cancelled", job_id=job_id, code=error.code)
    else:
        log.info("job cancelled: its client has gone", job_id=job_id)


async def kept(service: Service, job_id: str) -> None:
    """A Left: keep the job, as the client can come back with its Idempotency-Key."""


async def ended(service: Service, job: Job, request: Request, left: Left = cancelled) -> Job:
    """The job at its end; it has a deadline of its own.

    Raises ClientDisconnect if the client goes first, UnknownJob. Whatever is raised, `left` is called for the job.
    """
    end = asyncio.create_task(service.wait(job, math.inf))
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({end, gone}, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            raise ClientDisconnect
        return end.result()
    finally:
        if gone.done() or not end.done() or end.cancelled() or end.exception() is not None:
            leave(service, job.id, left)
        end.cancel()
        gone.cancel()


async def completed(service: Service, job: Job, request: Request, left: Left = cancelled) -> Job:
    """The job at its end, with an image at least. Raises what `ended` raises, and the error that the job ended with."""
    job = await ended(service, job, request, left)
    error = error_of(job)
    if error is not None:
        raise error
    return job


def leave(service: Service, job_id: str, left: Left = cancelled) -> None:
    """Call `left` for the job of a client that has gone, without waiting for it."""
    task = asyncio.create_task(left(service, job_id))
    _clearing.add(task)
    task.add_done_callback(_clearing.discard)


async def _gone(request: Request) -> None:
    """Returns when the client has closed its connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def error_of(job: Job) -> DarkroomError | None:
    """The error that the job ended with; None if there is an image."""
    match job.state:
        case JobState.COMPLETE:
            return None
        case JobState.BLOCKED:
            return ImagesWithheld(BLOCKED_MESSAGE)
        case JobState.CANCELLED:
            return Cancelled("the job was cancelled")
        case _:
            return error_named(job.error_code, job.error_message)


def error_named(code: str | None, message: str | None, field: str | None = None) -> DarkroomError:
    """The error of a stored code."""
    return _BY_CODE.get(code or "", DarkroomError)(message or "the job failed", field)


def shown_images(job: Job) -> list[ShownImage]:
    """The images of a job that may be seen, in the order of their seeds; withheld ones are left out."""
    return [
        ShownImage(
            ImageName.parse(record["name"]),
            f"{record['width']}x{record['height']}",
            record["seed"],
            Manifest.model_validate(record["manifest"], extra="ignore"),  # an older version may have written it
        )
        for record in (job.result or {}).get("images", [])
        if record["name"] is not None
    ]


async def files_of(service: Service, images: list[ShownImage]) -> list[bytes]:
    """The images' files. Raises UnknownImage, StoreUnavailable."""
    return [await service.images.read(image.name) for image in images]
