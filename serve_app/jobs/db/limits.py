"""Whether one more job has a place: by number, by device seconds of work, by its start, by its key's quota.

All is counted in the transaction that inserts the job, so that the bounds hold exactly whatever number of routers
accept at the same time. Work that nobody could predict counts as none. Knows the tables; nothing of HTTP or stages.
"""

import math
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Float, case, cast, func, select

from serve_app.errors import QueueFull, StartsTooLate, TenantQueueFull
from serve_app.jobs.db import quotas
from serve_app.jobs.db.quotas import Quota
from serve_app.jobs.db.schema import jobs
from serve_app.jobs.states import UNFINISHED


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
    found = connection.execute(
        select(
            func.count().label("number"),
            func.coalesce(func.sum(left), 0.0).label("all_s"),
            func.coalesce(func.sum(case((jobs.c.tenant == tenant, left), else_=0.0)), 0.0).label("tenant_s"),
            func.coalesce(func.sum(case((jobs.c.key_id == demand.key_id, jobs.c.work_s))), 0.0).label("key_s"),
        ).where(jobs.c.state.in_(sorted(UNFINISHED)))
    )
    queue = found.one()
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
    if demand.key_id is not None:
        quotas.check(connection, demand.key_id, demand.quotas, work_s=demand.work_s, reserved_s=queue.key_s, now=now)


def _excess(unfinished_s: float, work_s: float | None, most_s: float | None) -> float:
    """By how much the work would be too much. A job that alone is more than the bound may run alone."""
    if most_s is None or unfinished_s <= 0:
        return 0.0
    return max(0.0, unfinished_s + (work_s or 0.0) - max(most_s, work_s or 0.0))


def _whole(seconds: float) -> int:
    return max(1, math.ceil(seconds))
