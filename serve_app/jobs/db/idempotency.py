"""When two requests are one: the names by which the store tells a repetition from a new request.

A name is unique within its tenant and lives as long as its job. Where there is none, a job whose client is gone can be
left under a fingerprint for a while, for one request of the same fingerprint to take it over. Texts of clients are
stored as hashes only.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, or_, select

from serve_app.errors import IdempotencyMismatch
from serve_app.jobs.db.schema import lost_requests, request_keys


@dataclass(frozen=True, slots=True)
class RequestKey:
    """A request that may come again.

    key: its name among its tenant's requests. body: what it asks for. Both as SHA-256, 64 hex digits.
    """

    key: str
    body: str

    @classmethod
    def named(cls, name: str, asked: Mapping[str, Any]) -> "RequestKey":
        """asked: the request as JSON, checked, with its defaults filled in: how it was written makes no difference."""
        return cls(_sha256(name), fingerprint(asked))


def fingerprint(facts: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, 64 hex digits; the order of their keys makes no difference."""
    return _sha256(json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True))


def known(connection: Connection, tenant: str, key: RequestKey) -> str | None:
    """The id of the job that this request became before. Raises IdempotencyMismatch where it asked for another."""
    found = connection.execute(
        select(request_keys.c.job_id, request_keys.c.body).where(
            request_keys.c.tenant == tenant, request_keys.c.key == key.key
        )
    )
    row = found.one_or_none()
    if row is None:
        return None
    if row.body != key.body:
        raise IdempotencyMismatch("this Idempotency-Key has been used for another request")
    job_id: str = row.job_id
    return job_id


def remember(connection: Connection, tenant: str, key: RequestKey, job_id: str) -> None:
    """This request became that job."""
    connection.execute(insert(request_keys).values(tenant=tenant, key=key.key, body=key.body, job_id=job_id))


def forget(connection: Connection, job_id: str) -> None:
    """The job is gone, and its request's name may be used again."""
    for table in (request_keys, lost_requests):
        connection.execute(delete(table).where(table.c.job_id == job_id))


def leave(connection: Connection, job_id: str, mark: str, *, now: datetime, until: datetime) -> None:
    """Whoever shows the fingerprint `mark` before `until` may have the job. What nobody came for in time is dropped."""
    stale = or_(lost_requests.c.until <= now, lost_requests.c.job_id == job_id)
    connection.execute(delete(lost_requests).where(stale))
    connection.execute(insert(lost_requests).values(job_id=job_id, fingerprint=mark, until=until))


def take(connection: Connection, mark: str, now: datetime) -> str | None:
    """The id of the oldest job that was left under a fingerprint; nobody else gets it. None where there is none."""
    oldest = (
        select(lost_requests.c.job_id)
        .where(lost_requests.c.fingerprint == mark, lost_requests.c.until > now)
        .order_by(lost_requests.c.job_id)
        .limit(1)
        .with_for_update(skip_locked=True)  # SQLite has no such clause and needs none
    )
    taken = delete(lost_requests).where(lost_requests.c.job_id == oldest.scalar_subquery())
    job_id: str | None = connection.scalar(taken.returning(lost_requests.c.job_id))
    return job_id


def give_up(connection: Connection, job_id: str, until: datetime) -> bool:
    """Leave the job no longer; False when it was taken before, or left anew since then."""
    gone = delete(lost_requests).where(lost_requests.c.job_id == job_id, lost_requests.c.until == until)
    return connection.execute(gone).rowcount == 1


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
