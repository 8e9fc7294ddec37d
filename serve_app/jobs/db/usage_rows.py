"""What tenants used, day by day: one row for each tenant and UTC day, which outlives the jobs that it sums up.

A job counts on the day of its end, in the transaction that ends it, with what its own row says then: so the sum of the
rows is the sum of the jobs, however often they changed hands. Refusals are no jobs. They are counted in this process
and written now and then, so that a flood of them isn't one of writes.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from serve_app.jobs.db.database import Database, Transactions, reads, writes
from serve_app.jobs.db.schema import usage
from serve_app.jobs.job import Job


@dataclass(frozen=True, slots=True)
class Usage:
    """A tenant's use on one day.

    Attributes:
        tenant: "" for jobs without a key.
        day: in UTC.
        device_s: device seconds of the jobs that ended.
        images: of the jobs that ended with a result, withheld ones included.
        refusals: requests for images that became no job.
    """

    tenant: str
    day: date
    device_s: float = 0.0
    images: int = 0
    refusals: int = 0


class UsageStore(Transactions):
    """The rows of all routers, and the refusals of this one that aren't written yet."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        super().__init__(database, clock)
        self._refused: Counter[tuple[str, date]] = Counter()

    def refused(self, tenant: str) -> None:
        """Count a refused request for images; `keep_refusals` writes it."""
        self._refused[tenant, self._clock().date()] += 1

    async def keep_refusals(self) -> None:
        """Write what was counted. Raises StoreUnavailable; it is still counted then."""
        if not self._refused:
            return
        counted = self._refused.copy()
        await self._add([Usage(tenant, day, refusals=number) for (tenant, day), number in counted.items()])
        self._refused -= counted

    @writes
    def _add(self, connection: Connection, rows: list[Usage]) -> None:
        # always in this order: two routers that write the same rows must not wait for each other
        for row in sorted(rows, key=lambda row: (row.tenant, row.day)):
            _add(connection, row)

    @reads
    def days(self, connection: Connection, *, tenant: str | None, since: date, until: date) -> tuple[Usage, ...]:
        """A tenant's rows (None: all tenants') from one day to another, both included, by day and tenant."""
        statement = select(usage).where(usage.c.day.between(since, until)).order_by(usage.c.day, usage.c.tenant)
        if tenant is not None:
            statement = statement.where(usage.c.tenant == tenant)
        return tuple(Usage(**row._mapping) for row in connection.execute(statement))


def count(connection: Connection, job: Job, now: datetime) -> None:
    """Count a job that ends now; in the transaction that ends it."""
    images = 0 if job.result is None else job.images_done
    if job.device_s or images:
        _add(connection, Usage(job.tenant, now.date(), job.device_s, images))


def _add(connection: Connection, row: Usage) -> None:
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    new = insert(usage).values(
        tenant=row.tenant, day=row.day, device_s=row.device_s, images=row.images, refusals=row.refusals
    )
    sums = {name: usage.c[name] + new.excluded[name] for name in ("device_s", "images", "refusals")}
    connection.execute(new.on_conflict_do_update(index_elements=list(usage.primary_key), set_=sums))
