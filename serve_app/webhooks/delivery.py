"""Delivers the webhooks of jobs that have ended: at least once each, by whichever router is there.

What is to be delivered stands in the job store from the job's creation on (jobs/db/outbox.py), so no end of a router
loses it. A receiver that doesn't take it is called again, with pauses that double; what nobody takes in max_attempts
calls is given up, and the log says so.
"""

import asyncio
import random
from collections.abc import Callable, Sequence

from pydantic import BaseModel

from deployments.engine.errors import InvalidRequest
from serve_app.api.native.job_view import JobView, Paths, job_view
from serve_app.config.webhooks import WebhookSettings
from serve_app.errors import StoreUnavailable, UnknownJob
from serve_app.jobs.db.outbox import DueWebhook
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.job import Job, utc_now
from serve_app.jobs.runner import JobRunner
from serve_app.observability.logs import bound, get_logger, sensitive
from serve_app.observability.metrics import FrontMetrics
from serve_app.webhooks.sender import Answer, Sender
from serve_app.webhooks.signing import SigningSecrets, signed_headers
from serve_app.webhooks.target import target_of

log = get_logger(__name__)

# calls of one router at once
_AT_ONCE = 32

# seconds that a claim outlasts the call, for the writes around it
_MARGIN_S = 30.0

# of a pause: the part that is chance, so that many webhooks of one receiver don't come back together
_JITTER = 0.2

# the answer of a receiver that wants no more of it
_GONE = 410


class WebhookBody(BaseModel):
    """The body of a webhook in the form of Standard Webhooks: the job at its end, as GET /result shows it."""

    type: str
    timestamp: str
    data: JobView


def webhook_body(job: Job, runner: JobRunner, root: str) -> bytes:
    """As JSON. Images' addresses aren't signed: where there are keys, they want one."""
    view = job_view(job, runner, None, Paths(root, None, 0))
    body = WebhookBody(type=f"job.{view.status}", timestamp=view.finished_at or view.created_at, data=view)
    return body.model_dump_json().encode()


class WebhookDelivery:
    """The webhooks of one process. Belongs to one event loop. Raises BadSecrets.

    Args:
        body_of: makes the call's body of a job and the path that its service is mounted at.
    """

    def __init__(
        self,
        settings: WebhookSettings,
        *,
        store: JobStore,
        metrics: FrontMetrics,
        body_of: Callable[[Job, str], bytes],
    ) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._body_of = body_of
        self._secrets = SigningSecrets(settings) if settings.on else None
        self._sender = Sender(settings)
        self._calls: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin, where there are webhooks."""
        if self._settings.on:
            self._loop = asyncio.create_task(self._look())

    async def stop(self) -> None:
        """End; calls that are under way are given up, and made again by whoever comes next."""
        tasks = [*self._calls, *([self._loop] if self._loop is not None else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def check(self) -> None:
        """Raises what ended the loop, if it has ended."""
        if self._loop is not None and self._loop.done() and not self._loop.cancelled():
            self._loop.result()

    async def begin_due(self) -> Sequence[asyncio.Task[None]]:
        """Begin the calls that are due, as many as there is room for. Raises StoreUnavailable."""
        room = _AT_ONCE - len(self._calls)
        if self._secrets is None or room == 0:
            return ()
        due = await self._store.outbox.claim(room, self._settings.timeout_s + _MARGIN_S)
        if due:
            await asyncio.to_thread(self._secrets.refresh)
        begun = [asyncio.create_task(self._deliver(one, self._secrets)) for one in due]
        for task in begun:
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)
        return begun

    async def _look(self) -> None:
        while True:
            try:
                await self.begin_due()
            except StoreUnavailable as error:
                log.warning("no webhook was delivered: the job database didn't answer", cause=repr(error.__cause__))
            await asyncio.sleep(self._settings.poll_s)

    async def _deliver(self, due: DueWebhook, secrets: SigningSecrets) -> None:
        """One attempt, whatever comes of it; nothing is raised."""
        with bound(job_id=due.job_id), sensitive(due.webhook.url):
            try:
                await self._settle(due, await self._call(due, secrets))
            except StoreUnavailable as error:
                log.warning("a webhook waits: the job database didn't answer", cause=repr(error.__cause__))
            except UnknownJob:
                log.warning("a webhook's job has been forgotten")
            except Exception:
                log.exception("an attempt at a webhook broke; it will be made again")

    async def _call(self, due: DueWebhook, secrets: SigningSecrets) -> Answer:
        """What the receiver answered, or why it wasn't called."""
        if due.attempt > self._settings.max_attempts:
            return Answer(None, "the process of its last call has died")
        job = await self._store.get(due.job_id)
        own_secrets = secrets.of(job.tenant)
        if not own_secrets:
            return Answer(None, "there is no secret for the job's tenant")
        try:
            target = target_of(due.webhook.url, self._settings)
        except InvalidRequest as error:  # the settings have changed since it was accepted
            return Answer(None, str(error))
        body = await asyncio.to_thread(self._body_of, job, due.webhook.root)
        headers = {"Content-Type": "application/json", "User-Agent": "Darkroom"}
        headers |= signed_headers(own_secrets, job.id, utc_now(), body)
        return await self._sender.post(target, headers, body)

    async def _settle(self, due: DueWebhook, answer: Answer) -> None:
        said = log.bind(attempt=due.attempt, status=answer.status, failure=answer.failure)
        if answer.taken:
            await self._store.outbox.settle(due)
            self._metrics.webhook("delivered")
            said.info("webhook delivered")
        elif answer.status == _GONE or due.attempt >= self._settings.max_attempts:
            await self._store.outbox.settle(due)
            self._metrics.webhook("given_up")
            said.error("webhook given up")
        else:
            pause_s = min(self._settings.longest_retry_s, self._settings.first_retry_s * 2 ** (due.attempt - 1))
            await self._store.outbox.put_off(due, pause_s * (1 + _JITTER * random.random()))
            self._metrics.webhook("failed")
            said.warning("webhook not taken")
