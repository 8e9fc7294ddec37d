"""The webhooks of jobs: one row for each, from the job's creation until the webhook is delivered or given up.

A claim puts off the next attempt and counts this one, so that a router that dies in between loses nothing but time;
settling a webhook names the attempt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from serve_app.jobs.db.database import Transactions, writes
from serve_app.jobs.db.schema import jobs, webhooks
from serve_app.jobs.states import ENDS


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook: the `url` to call when the job has ended, and the `root` of the URLs in its body."""

    url: str
    root: str = ""


@dataclass(frozen=True, slots=True)
class DueWebhook:
    """A claimed webhook; `attempt` counts from 1."""

    job_id: str
    webhook: Webhook
    attempt: int


class Outbox(Transactions):
    """The webhooks of a job store. Each method raises StoreUnavailable."""

    @writes
    def claim(self, connection: Connection, limit: int, lease_s: float) -> Sequence[DueWebhook]:
        """Claim due webhooks of ended jobs, the longest due first; nobody else gets them within the lease."""
        now = self._clock()
        due = (
            select(webhooks.c.job_id)
            .join(jobs, jobs.c.id == webhooks.c.job_id)
            .where(webhooks.c.due_at <= now, jobs.c.state.in_(sorted(ENDS)))
            .order_by(webhooks.c.due_at)
            .limit(limit)
            .with_for_update(of=webhooks, skip_locked=True)  # SQLite has no such clause and needs none
        )
        claimed = (
            update(webhooks)
            .where(webhooks.c.job_id.in_(due))
            .values(attempts=webhooks.c.attempts + 1, due_at=now + timedelta(seconds=lease_s))
            .returning(webhooks)
        )
        rows = connection.execute(claimed)
        return tuple(DueWebhook(row.job_id, Webhook(row.url, row.root), row.attempts) for row in rows)

    @writes
    def put_off(self, connection: Connection, due: DueWebhook, pause_s: float) -> None:
        """Put off a failed attempt by `pause_s`; does nothing if another attempt has begun meanwhile."""
        until = self._clock() + timedelta(seconds=pause_s)
        connection.execute(update(webhooks).where(*_of(due)).values(due_at=until))

    @writes
    def settle(self, connection: Connection, due: DueWebhook) -> None:
        """Delete a delivered or given up webhook; does nothing if another attempt has begun meanwhile."""
        connection.execute(delete(webhooks).where(*_of(due)))


def add(connection: Connection, job_id: str, webhook: Webhook, now: datetime) -> None:
    """Add the webhook of a new job."""
    connection.execute(insert(webhooks).values(job_id=job_id, url=webhook.url, root=webhook.root, due_at=now))


def forget(connection: Connection, job_id: str) -> None:
    """Delete the webhook of a job that is deleted."""
    connection.execute(delete(webhooks).where(webhooks.c.job_id == job_id))


def _of(due: DueWebhook) -> tuple[ColumnElement[bool], ...]:
    return webhooks.c.job_id == due.job_id, webhooks.c.attempts == due.attempt
