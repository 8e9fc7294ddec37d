"""Waiting with the client: a dialect that answers with the images themselves holds the request until the job ends.

Such a client never learns the job's id, so nobody could fetch the result after it: when it goes, its job is cancelled.
"""

import asyncio
import math

from starlette.requests import ClientDisconnect, Request

from deployments.engine.errors import DarkroomError
from serve_app.api.service import Service
from serve_app.jobs.job import Job
from serve_app.logs import get_logger

log = get_logger(__name__)

# tasks that nobody awaits need somebody who holds them
_cancelling: set[asyncio.Task[None]] = set()


async def ended(service: Service, job: Job, request: Request) -> Job:
    """The job at its end; it has a deadline of its own.

    Raises ClientDisconnect when the client goes first (the job is then cancelled), UnknownJob, StoreUnavailable.
    """
    end = asyncio.create_task(service.wait(job.id, math.inf))
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({end, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not end.done():
            raise ClientDisconnect
        return end.result()
    finally:
        if not end.done():
            abandon(service, job.id)
        end.cancel()
        gone.cancel()


def abandon(service: Service, job_id: str) -> None:
    """Cancel a job that nobody waits for any more, without waiting for that either."""
    task = asyncio.create_task(_cancel(service, job_id))
    _cancelling.add(task)
    task.add_done_callback(_cancelling.discard)


async def _cancel(service: Service, job_id: str) -> None:
    try:
        await service.cancel(job_id)
    except DarkroomError as error:
        log.warning("a job without a client could not be cancelled", job_id=job_id, code=error.code)
    else:
        log.info("job cancelled: its client has gone", job_id=job_id)


async def _gone(request: Request) -> None:
    """Returns when the client has closed its connection. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
