"""The bounds of the queue: number of jobs, device seconds of work, a job's start, its API key's quota.

All is counted in the transaction that inserts the job, so that the bounds hold exactly with several routers. Work that
couldn't be predicted counts as none. A key has spent what its ended jobs were charged, minute by minute, and what its
unfinished ones are expected to take.
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
    """At most so many device seconds in any `window_s` seconds, to the minute."""

    seconds: float
    window_s: int


@dataclass(frozen=True, slots=True)
class Demand:
    """A new job's work, and the bounds that it must keep.

    Attributes:
        work_s: device seconds that it is expected to take; None if unknown.
        late_s: seconds by which it would start after its timeout; 0 if it starts in time.
        first_end_s: seconds until some job is done; None if unknown.
        rate, tenant_rate: device seconds of work done a second, of all jobs and of its tenant's.
        max_queued_s, max_queued_s_per_tenant: most device seconds of unfinished work; None for no bound.
        key_id, quotas: the API key that is charged, and its quotas.
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
    """Raise QueueFull, TenantQueueFull, StartsTooLate, QuotaExceeded or InvalidRequest if a bound is reached."""
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
            f"the job would start {demand.late_s:.0f} s after its timeout_s ends: try again later, or raise timeout_s",
            retry_after_s=_whole(demand.late_s),
        )
    if demand.key_id is not None and demand.quotas:
        _check_quotas(connection, demand.key_id, demand, queue.key_s, now)


def charge(connection: Connection, key_id: str, seconds: float, now: datetime) -> None:
    """Charge the key."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    row = insert(spent).values(key_id=key_id, minute=_minute(now), seconds=seconds)
    add = row.on_conflict_do_update(
        index_elements=[spent.c.key_id, spent.c.minute], set_={"seconds": spent.c.seconds + row.excluded.seconds}
    )
    connection.execute(add)


def _check_quotas(connection: Connection, key_id: str, demand: Demand, reserved_s: float, now: datetime) -> None:
    """Raise QuotaExceeded if a job is too much for its key now, InvalidRequest if it always is.

    A job of unknown work is accepted while anything is left. `reserved_s`: expected for the key's unfinished jobs.
    Deletes charges that no quota counts any more.
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
                f"this request takes about {work_s:.0f} device seconds, "
                f"this key has {quota.seconds:g} in {quota.window_s} s"
            )
        since = _minute(now) - math.ceil(quota.window_s / _MINUTE_S)
        window = [(minute, seconds) for minute, seconds in minutes if minute > since]
        excess = sum(seconds for _, seconds in window) + reserved_s + (work_s or 0.0) - quota.seconds
        if excess > 0 or (work_s is None and excess >= 0):
            raise QuotaExceeded(
                f"this key's {quota.seconds:g} device seconds in {quota.window_s} s are spent or reserved for its jobs",
                retry_after_s=_free_in(window, excess, quota, now),
            )


def _free_in(window: Sequence[tuple[int, float]], excess: float, quota: Quota, now: datetime) -> int:
    """Seconds until `excess` of the window's charges no longer count; all of the window if they aren't so much."""
    for minute, seconds in window:
        excess -= seconds
        if excess <= 0:
            free_at = (minute + math.ceil(quota.window_s / _MINUTE_S)) * _MINUTE_S
            return max(1, math.ceil(free_at - now.timestamp()))
    return quota.window_s


def _minute(now: datetime) -> int:
    return int(now.timestamp()) // _MINUTE_S


def _excess(unfinished_s: float, work_s: float | None, most_s: float | None) -> float:
    """The seconds by which the work exceeds the bound. A job that exceeds it by itself may run alone."""
    if most_s is None or unfinished_s <= 0:
        return 0.0
    return max(0.0, unfinished_s + (work_s or 0.0) - max(most_s, work_s or 0.0))


def _whole(seconds: float) -> int:
    return max(1, math.ceil(seconds))
