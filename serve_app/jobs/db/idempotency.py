"""Repeated requests: by their Idempotency-Key, or by a fingerprint of the request.

A key is unique within its tenant and lives as long as its job or batch. Without one, a job whose client is gone can be
left under a fingerprint for a while, for one request with the same fingerprint to take it over. Clients' texts are
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
    """A request that may come again: its key among its tenant's requests and its body, as SHA-256 of 64 hex digits."""

    key: str
    body: str

    @classmethod
    def named(cls, name: str, asked: Mapping[str, Any]) -> "RequestKey":
        """From a client's key and what tells its request from others, as JSON (`RequestPart.identity`)."""
        return cls(_sha256(name), fingerprint(asked))


def fingerprint(facts: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, 64 hex digits; the order of their keys makes no difference."""
    return _sha256(json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=True))


def known(connection: Connection, tenant: str, key: RequestKey) -> str | None:
    """The id of the job or batch that this request became before; None if it is new.

    Raises IdempotencyMismatch if the key was used for another request.
    """
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
    """Note that this request became that job, or batch."""
    connection.execute(insert(request_keys).values(tenant=tenant, key=key.key, body=key.body, job_id=job_id))


def forget(connection: Connection, job_id: str) -> None:
    """Delete the keys and fingerprints of a job or batch that is deleted."""
    for table in (request_keys, lost_requests):
        connection.execute(delete(table).where(table.c.job_id == job_id))


def leave(connection: Connection, job_id: str, mark: str, *, now: datetime, until: datetime) -> None:
    """Leave the job to the first request with the fingerprint `mark` until `until`; drop jobs left for too long."""
    stale = or_(lost_requests.c.until <= now, lost_requests.c.job_id == job_id)
    connection.execute(delete(lost_requests).where(stale))
    connection.execute(insert(lost_requests).values(job_id=job_id, fingerprint=mark, until=until))


def take(connection: Connection, mark: str, now: datetime) -> str | None:
    """Take the oldest job that was left under a fingerprint; returns its id, None if there is none."""
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
    """Leave the job no longer; False if it was taken before, or left anew since then."""
    gone = delete(lost_requests).where(lost_requests.c.job_id == job_id, lost_requests.c.until == until)
    return connection.execute(gone).rowcount == 1


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
