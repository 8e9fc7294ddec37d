"""The webhooks of jobs: one row for each job that has to be told of, from its creation until somebody has taken it.

A claim is a delay: it puts off the next attempt and counts this one, so that a router that dies in between loses
nothing but time; who settles a webhook says which attempt it was.
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
    """What is asked for. url: to be called when the job has ended. root: what the paths in its body begin with."""

    url: str
    root: str = ""


@dataclass(frozen=True, slots=True)
class DueWebhook:
    """A webhook that somebody has claimed. attempt: which it is, from 1."""

    job_id: str
    webhook: Webhook
    attempt: int


class Outbox(Transactions):
    """The webhooks of a job store. Each method raises StoreUnavailable."""

    @writes
    def claim(self, connection: Connection, limit: int, lease_s: float) -> Sequence[DueWebhook]:
        """Take those of ended jobs that are due, the longest due first; nobody else gets them within the lease."""
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
        """The attempt failed; the next is after the pause. Nothing where another attempt has begun meanwhile."""
        until = self._clock() + timedelta(seconds=pause_s)
        connection.execute(update(webhooks).where(*_of(due)).values(due_at=until))

    @writes
    def settle(self, connection: Connection, due: DueWebhook) -> None:
        """It was taken, or is given up. Nothing where another attempt has begun meanwhile."""
        connection.execute(delete(webhooks).where(*_of(due)))


def add(connection: Connection, job_id: str, webhook: Webhook, now: datetime) -> None:
    """Of a job that is being created."""
    connection.execute(insert(webhooks).values(job_id=job_id, url=webhook.url, root=webhook.root, due_at=now))


def forget(connection: Connection, job_id: str) -> None:
    """The job is gone."""
    connection.execute(delete(webhooks).where(webhooks.c.job_id == job_id))


def _of(due: DueWebhook) -> tuple[ColumnElement[bool], ...]:
    return webhooks.c.job_id == due.job_id, webhooks.c.attempts == due.attempt
