"""What each API key has spent of the device, and whether it may spend more. Minute by minute, in the job database.

So every router sees the same, and a restart forgets nothing. What is spent is what ended jobs were charged; what those
that haven't ended are expected to take counts as spent already. Knows nothing of HTTP, nor of what a job is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from deployments.engine.errors import InvalidRequest
from serve_app.errors import QuotaExceeded
from serve_app.jobs.db.schema import spent

_MINUTE_S = 60


@dataclass(frozen=True, slots=True)
class Quota:
    """So many device seconds in any `window_s` seconds, to the minute."""

    seconds: float
    window_s: int


def charge(connection: Connection, key_id: str, seconds: float, now: datetime) -> None:
    """The key has spent so much."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    row = insert(spent).values(key_id=key_id, minute=_minute(now), seconds=seconds)
    add = row.on_conflict_do_update(
        index_elements=[spent.c.key_id, spent.c.minute], set_={"seconds": spent.c.seconds + row.excluded.seconds}
    )
    connection.execute(add)


def check(
    connection: Connection,
    key_id: str,
    quotas: Sequence[Quota],
    *,
    work_s: float | None,
    reserved_s: float,
    now: datetime,
) -> None:
    """Raise QuotaExceeded where a job of `work_s` would be too much for the key now, InvalidRequest where it always is.

    work_s: None while nobody knows; such a job is let in while there is anything left. reserved_s: of the key's
    unfinished jobs. Forgets what no quota asks for any more.
    """
    if not quotas:
        return
    oldest = _minute(now) - math.ceil(max(quota.window_s for quota in quotas) / _MINUTE_S)
    connection.execute(delete(spent).where(spent.c.key_id == key_id, spent.c.minute <= oldest))
    rows = connection.execute(
        select(spent.c.minute, spent.c.seconds).where(spent.c.key_id == key_id).order_by(spent.c.minute)
    )
    minutes = [(row.minute, row.seconds) for row in rows]
    for quota in quotas:
        if work_s is not None and work_s > quota.seconds:
            raise InvalidRequest(
                f"this takes about {work_s:.0f} s of the device, this key has {quota.seconds:g} in {quota.window_s} s"
            )
        since = _minute(now) - math.ceil(quota.window_s / _MINUTE_S)
        window = [(minute, seconds) for minute, seconds in minutes if minute > since]
        excess = sum(seconds for _, seconds in window) + reserved_s + (work_s or 0.0) - quota.seconds
        if excess > 0 or (work_s is None and excess >= 0):
            raise QuotaExceeded(
                f"this key's {quota.seconds:g} s of the device in {quota.window_s} s are spent or promised to its jobs",
                retry_after_s=_free_in(window, excess, quota, now),
            )


def _free_in(window: Sequence[tuple[int, float]], excess: float, quota: Quota, now: datetime) -> int:
    """Seconds until so much of what was spent counts no longer; the whole window where it must be used up first."""
    for minute, seconds in window:
        excess -= seconds
        if excess <= 0:
            free_at = (minute + math.ceil(quota.window_s / _MINUTE_S)) * _MINUTE_S
            return max(1, math.ceil(free_at - now.timestamp()))
    return quota.window_s


def _minute(now: datetime) -> int:
    return int(now.timestamp()) // _MINUTE_S
