"""Waiting with the client: a dialect that answers with the images themselves holds the request until the job ends.

Such a client never learns the job's id, so nobody could fetch the result after it: when it goes, its job is cancelled,
unless the request has a name, or a retry of it may come (retries.py).
"""

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.requests import ClientDisconnect, Request

from deployments.engine.errors import DarkroomError
from serve_app.api.service import Service
from serve_app.jobs.job import Job
from serve_app.observability.logs import get_logger

log = get_logger(__name__)

# what becomes of the job of that id when its client has gone
Left = Callable[[Service, str], Coroutine[Any, Any, None]]

# tasks that nobody awaits need somebody who holds them
_clearing: set[asyncio.Task[None]] = set()


async def cancelled(service: Service, job_id: str) -> None:
    """A Left: nobody waits for the job any more, so it ends."""
    try:
        await service.cancel(job_id)
    except DarkroomError as error:
        log.warning("a job without a client could not be cancelled", job_id=job_id, code=error.code)
    else:
        log.info("job cancelled: its client has gone", job_id=job_id)


async def kept(service: Service, job_id: str) -> None:
    """A Left: the client has a name for its request, by which it can come back."""


async def ended(service: Service, job: Job, request: Request, left: Left = cancelled) -> Job:
    """The job at its end; it has a deadline of its own.

    Raises ClientDisconnect when the client goes first, UnknownJob. Whatever is raised, the job is `left`.
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


def leave(service: Service, job_id: str, left: Left = cancelled) -> None:
    """The client has gone: `left`, without waiting for that either."""
    task = asyncio.create_task(left(service, job_id))
    _clearing.add(task)
    task.add_done_callback(_clearing.discard)


async def _gone(request: Request) -> None:
    """Returns when the client has closed its connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
