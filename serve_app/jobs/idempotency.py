"""When two requests are one: the names by which the store tells a repetition from a new request.

A name is unique within its tenant and lives as long as its job. Texts of clients are stored as hashes only.
Knows nothing of HTTP, nor of what a job is.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.errors import IdempotencyMismatch
from serve_app.jobs.schema import request_keys


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
        canonical = json.dumps(asked, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return cls(_sha256(name), _sha256(canonical))


async def known(connection: AsyncConnection, tenant: str, key: RequestKey) -> str | None:
    """The id of the job that this request became before. Raises IdempotencyMismatch where it asked for another."""
    found = await connection.execute(
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


async def remember(connection: AsyncConnection, tenant: str, key: RequestKey, job_id: str) -> None:
    """This request became that job."""
    await connection.execute(insert(request_keys).values(tenant=tenant, key=key.key, body=key.body, job_id=job_id))


async def forget(connection: AsyncConnection, job_id: str) -> None:
    """The job is gone, and its request's name may be used again."""
    await connection.execute(delete(request_keys).where(request_keys.c.job_id == job_id))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
