"""Whether one more job has a place: by number, by device seconds of work, by its start, by its API key's quota.

All is counted in the transaction that inserts the job, so that the bounds hold exactly whatever number of routers
accept at the same time. Work that nobody could predict counts as none. What a key has spent is what its ended jobs were
charged, minute by minute; what those that haven't ended are expected to take counts as spent already.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Float, case, cast, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from deployments.engine.errors import InvalidRequest
from serve_app.errors import QueueFull, QuotaExceeded, StartsTooLate, TenantQueueFull
from serve_app.jobs.db.schema import jobs, spent
from serve_app.jobs.states import UNFINISHED

_MINUTE_S = 60


@dataclass(frozen=True, slots=True)
class Quota:
    """So many device seconds in any `window_s` seconds, to the minute."""

    seconds: float
    window_s: int


@dataclass(frozen=True, slots=True)
class Demand:
    """What a new job asks for, and the bounds that it has to keep.

    work_s: device seconds that it is expected to take; None while nobody knows.
    late_s: by how much it would start after its time is over; 0 where it starts in time.
    first_end_s: seconds until some job is done; None while nobody knows.
    rate, tenant_rate: device seconds of work that are done a second, of all jobs and of its tenant's.
    max_queued_s, max_queued_s_per_tenant: most device seconds of unfinished work; None is no bound.
    key_id, quotas: the API key that pays for it, and what that may spend.
    """

    work_s: float | None = None
    late_s: float = 0.0
    first_end_s: float | None = None
    rate: float = 1.0
    tenant_rate: float = 1.0
    max_queued_s: float | None = None
    max_queued_s_per_tenant: float | None = None
    key_id: str | None = None
    quotas: tuple[Quota, ...] = ()


NO_BOUNDS = Demand()


def check(connection: Connection, tenant: str, max_queued: int, demand: Demand, now: datetime) -> None:
    """Raise QueueFull, TenantQueueFull, StartsTooLate, QuotaExceeded or InvalidRequest where there is no place."""
    done = case((jobs.c.steps > 0, cast(jobs.c.step, Float) / jobs.c.steps), else_=0.0)
    left = func.coalesce(jobs.c.work_s, 0.0) * (1.0 - done)
    queue = connection.execute(
        select(
            func.count().label("number"),
            func.coalesce(func.sum(left), 0.0).label("all_s"),
            func.coalesce(func.sum(case((jobs.c.tenant == tenant, left), else_=0.0)), 0.0).label("tenant_s"),
            func.coalesce(func.sum(case((jobs.c.key_id == demand.key_id, jobs.c.work_s))), 0.0).label("key_s"),
        ).where(jobs.c.state.in_(sorted(UNFINISHED)))
    ).one()
    most = demand.max_queued_s_per_tenant
    over = _excess(queue.tenant_s, demand.work_s, most)
    if over:
        raise TenantQueueFull(
            f"{queue.tenant_s:.0f} s of your work are unfinished, {most:g} are allowed",
            retry_after_s=_whole(over / demand.tenant_rate),
        )
    if queue.number >= max_queued:
        raise QueueFull(
            f"the queue is full: {queue.number} jobs are unfinished, {max_queued} are allowed",
            retry_after_s=None if demand.first_end_s is None else _whole(demand.first_end_s),
        )
    over = _excess(queue.all_s, demand.work_s, demand.max_queued_s)
    if over:
        raise QueueFull(
            f"the queue is full: {queue.all_s:.0f} s of work are unfinished, {demand.max_queued_s:g} are allowed",
            retry_after_s=_whole(over / demand.rate),
        )
    if demand.late_s > 0:
        raise StartsTooLate(
            f"it would start {demand.late_s:.0f} s after its timeout_s is over: try again later, or allow more time",
            retry_after_s=_whole(demand.late_s),
        )
    if demand.key_id is not None and demand.quotas:
        _check_quotas(connection, demand.key_id, demand, queue.key_s, now)


def charge(connection: Connection, key_id: str, seconds: float, now: datetime) -> None:
    """The key has spent so much."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    row = insert(spent).values(key_id=key_id, minute=_minute(now), seconds=seconds)
    add = row.on_conflict_do_update(
        index_elements=[spent.c.key_id, spent.c.minute], set_={"seconds": spent.c.seconds + row.excluded.seconds}
    )
    connection.execute(add)


def _check_quotas(connection: Connection, key_id: str, demand: Demand, reserved_s: float, now: datetime) -> None:
    """Raise QuotaExceeded where a job would be too much for its key now, InvalidRequest where it always is.

    One of which nobody knows what it takes is let in while there is anything left. reserved_s: of the key's unfinished
    jobs. Forgets what no quota counts any more.
    """
    work_s = demand.work_s
    oldest = _minute(now) - math.ceil(max(quota.window_s for quota in demand.quotas) / _MINUTE_S)
    connection.execute(delete(spent).where(spent.c.key_id == key_id, spent.c.minute <= oldest))
    rows = connection.execute(
        select(spent.c.minute, spent.c.seconds).where(spent.c.key_id == key_id).order_by(spent.c.minute)
    )
    minutes = [(row.minute, row.seconds) for row in rows]
    for quota in demand.quotas:
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


def _excess(unfinished_s: float, work_s: float | None, most_s: float | None) -> float:
    """By how much the work would be too much. A job that alone is more than the bound may run alone."""
    if most_s is None or unfinished_s <= 0:
        return 0.0
    return max(0.0, unfinished_s + (work_s or 0.0) - max(most_s, work_s or 0.0))


def _whole(seconds: float) -> int:
    return max(1, math.ceil(seconds))
