"""The rows of jobs as they are read: one, some, a page, their order. Knows nothing of who may change them."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, func, select

from serve_app.errors import UnknownJob
from serve_app.jobs.db.schema import jobs
from serve_app.jobs.job import Job, JobPage, QueueDepth, is_job_id
from serve_app.jobs.states import UNFINISHED, JobState


def job_of(row: Row[Any]) -> Job:
    """A job as all columns of its row say."""
    return Job(**{**row._mapping, "state": JobState(row.state)})


def among(states: frozenset[JobState]) -> ColumnElement[bool]:
    """A condition: the job is in one of these states."""
    return jobs.c.state.in_(sorted(states))


def get(connection: Connection, job_id: str, tenant: str | None) -> Job:
    """Raises UnknownJob, also for another tenant's (None: whosever it is)."""
    row = None
    if is_job_id(job_id):
        row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
    if row is None or (tenant is not None and row.tenant != tenant):
        raise UnknownJob("no such job")
    return job_of(row)


def find(connection: Connection, conditions: Sequence[ColumnElement[bool]], limit: int) -> tuple[Job, ...]:
    """The jobs of which all of this holds, the oldest first."""
    rows = connection.execute(select(jobs).where(*conditions).order_by(jobs.c.id).limit(limit))
    return tuple(job_of(row) for row in rows)


def page(connection: Connection, tenant: str | None, limit: int, cursor: str | None) -> JobPage:
    """A tenant's jobs (None: everybody's) after those up to `cursor`, newest first."""
    statement = select(jobs).order_by(jobs.c.id.desc()).limit(limit + 1)
    if tenant is not None:
        statement = statement.where(jobs.c.tenant == tenant)
    if cursor is not None:
        if not is_job_id(cursor):
            return JobPage((), None)
        statement = statement.where(jobs.c.id < cursor)
    rows = [job_of(row) for row in connection.execute(statement)]
    found = tuple(rows[:limit])
    return JobPage(found, found[-1].id if found and len(rows) > limit else None)


def position(connection: Connection, job_id: str) -> int:
    """Its place among the queued jobs, 1 being next; 0 when it doesn't wait. Raises UnknownJob."""
    if get(connection, job_id, None).state is not JobState.QUEUED:
        return 0
    ahead = select(func.count()).select_from(jobs).where(jobs.c.state == JobState.QUEUED, jobs.c.id <= job_id)
    return connection.scalar(ahead) or 0


def depth(connection: Connection) -> QueueDepth:
    """How many jobs wait and how many run."""
    statement = select(jobs.c.state, func.count().label("jobs")).where(among(UNFINISHED)).group_by(jobs.c.state)
    counts = {row.state: row.jobs for row in connection.execute(statement)}
    return QueueDepth(counts.get(JobState.QUEUED, 0), counts.get(JobState.RUNNING, 0))
