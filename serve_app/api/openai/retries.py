"""A stock OpenAI client's own retry is the request that it repeats, not another one.

The SDKs name no request, but count their tries in `x-stainless-retry-count`, from 0. A try whose connection is lost
leaves its job, for `jobs.retry_window_s`, under a fingerprint of caller, client and body; the next retry of the same
fingerprint takes the job over, on whichever router, and what nobody takes is cancelled. A job is taken once, and only
when its client is known to be gone, so that no request gets the picture of another one that is waited for; a first try
takes none at all: who asks twice wants two pictures. A client that doesn't count its tries gets no such favour.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from deployments.engine.errors import DarkroomError
from serve_app.api.errors import WORTH_RETRYING
from serve_app.api.http_status import status_of
from serve_app.api.outcome import Left, cancelled, error_of, kept
from serve_app.api.service import RequestOrigin, Service
from serve_app.auth.caller import Caller
from serve_app.jobs.db.idempotency import fingerprint
from serve_app.jobs.job import Job
from serve_app.observability.logs import get_logger
from serve_app.schemas.generation_request import GenerationRequest

log = get_logger(__name__)

_COUNT = "x-stainless-retry-count"
_NUMBER = re.compile(r"[0-9]{1,4}", re.ASCII)

# other headers of the SDKs that say something of one try, or of how long it waits
_OF_ONE_TRY = frozenset({_COUNT, "x-stainless-read-timeout", "x-stainless-timeout"})


@dataclass(frozen=True, slots=True)
class Taken:
    """The job of a request, whether it is an earlier request's, and what to do with it when the client goes."""

    job: Job
    again: bool
    left: Left


async def take(
    service: Service,
    request: Request,
    origin: RequestOrigin,
    generation: GenerationRequest,
    body: Mapping[str, Any],
) -> Taken:
    """The job of a request, a new one or that of the request which it repeats.

    `body` is the request's JSON, empty if the client never repeats it. Raises what Service.accept raises.
    """
    if origin.key is not None:
        job, again = await service.accept(generation, origin)
        return Taken(job, again, kept)
    count = _NUMBER.fullmatch(request.headers.get(_COUNT, ""))
    window_s = service.settings.jobs.retry_window_s
    if count is None or not body or window_s == 0:
        job, _ = await service.accept(generation, origin)
        return Taken(job, False, cancelled)
    caller = origin.caller
    mark = fingerprint({"client": _client(request, caller), "body": body})
    left = _left_for(mark, window_s)
    if int(count[0]) > 0:
        earlier = await service.store.take_over(mark, tenant=caller.tenant)
        if earlier is not None and not _worth_another(earlier):
            caller.accepted.append(earlier.id)
            log.info("a retry took its job over", job_id=earlier.id, state=earlier.state.value)
            return Taken(earlier, True, left)
    job, _ = await service.accept(generation, origin)
    return Taken(job, False, left)


def _client(request: Request, caller: Caller) -> dict[str, str]:
    """What all tries of a call have in common, and other clients don't."""
    return {
        "caller": caller.name,
        "key": "" if caller.key is None else caller.key.id,
        "address": request.client.host if request.client else "",
        **{
            name: value
            for name, value in request.headers.items()
            if name == "user-agent" or (name.startswith("x-stainless-") and name not in _OF_ONE_TRY)
        },
    }


def _worth_another(job: Job) -> bool:
    """The job failed of what may have passed by now."""
    error = error_of(job) if job.state.terminal else None
    return error is not None and status_of(error) in WORTH_RETRYING


def _left_for(mark: str, window_s: float) -> Left:
    async def left(service: Service, job_id: str) -> None:
        try:
            until = await service.store.leave(job_id, mark, window_s)
            job = await service.wait(await service.store.get(job_id), window_s)
            if job.state.terminal or not await service.store.give_up(job_id, until):
                return
        except DarkroomError as error:
            log.warning("a job could not be kept for a retry", job_id=job_id, code=error.code)
        await cancelled(service, job_id)

    return left
