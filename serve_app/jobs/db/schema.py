"""The tables of the job store; migrations/ has the steps that lead here, store.py the rows' meaning."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Dialect,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    false,
    text,
)
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A time with its zone, stored as UTC; in SQLite as text without a zone, which sorts by time."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC. Raises ValueError for a time without a zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment needs a time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """With UTC as its zone, whether or not the database keeps zones."""
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


metadata = MetaData()

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("state", String(16), nullable=False),
    Column("request", JSON, nullable=False),
    Column("result", JSON(none_as_null=True)),
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("step", Integer, nullable=False, server_default=text("0")),
    Column("steps", Integer, nullable=False, server_default=text("0")),
    Column("images_done", Integer, nullable=False, server_default=text("0")),
    Column("created_at", UtcDateTime, nullable=False),
    Column("started_at", UtcDateTime),
    Column("finished_at", UtcDateTime),
    Column("owner", String(128)),
    Column("fence", Integer, nullable=False, server_default=text("0")),
    Column("lease_until", UtcDateTime),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("cancel_requested", Boolean, nullable=False, server_default=false()),
    Column("work_s", Float),
    Column("device_s", Float, nullable=False, server_default=text("0")),
    Column("key_id", String(64)),
    Index("jobs_by_state", "state", "id"),
    Index("jobs_by_tenant", "tenant", "id"),
    Index("jobs_by_lease", "state", "lease_until"),
    Index("jobs_by_end", "finished_at"),
)

# no foreign key: SQLite would have to be told in every connection to mind it; a job and its key go in one transaction.
# job_id may be a batch's
request_keys = Table(
    "request_keys",
    metadata,
    Column("tenant", String(128), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("body", String(64), nullable=False),
    Column("job_id", String(32), nullable=False),
    Index("request_keys_by_job", "job_id"),
)

# jobs whose client is gone, but may come back for them
lost_requests = Table(
    "lost_requests",
    metadata,
    Column("job_id", String(32), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("until", UtcDateTime, nullable=False),
    Index("lost_requests_by_fingerprint", "fingerprint", "job_id"),
)

# device seconds that API keys have spent, by minute since 1970
spent = Table(
    "spent",
    metadata,
    Column("key_id", String(64), primary_key=True),
    Column("minute", Integer, primary_key=True, autoincrement=False),
    Column("seconds", Float, nullable=False),
)

# what tenants used, by UTC day; it outlives the jobs
usage = Table(
    "usage",
    metadata,
    Column("tenant", String(128), primary_key=True),
    Column("day", Date, primary_key=True),
    Column("device_s", Float, nullable=False, server_default=text("0")),
    Column("images", Integer, nullable=False, server_default=text("0")),
    Column("refusals", Integer, nullable=False, server_default=text("0")),
)

# again no foreign key
job_states = Table(
    "job_states",
    metadata,
    Column("job_id", String(32), primary_key=True),
    Column("image", Integer, primary_key=True, autoincrement=False),
    Column("stage", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)

# what a unit of a kind of work costs; sampler "" and pixels 0: decoding
learned_costs = Table(
    "learned_costs",
    metadata,
    Column("stage", String(64), primary_key=True),
    Column("sampler", String(64), primary_key=True),
    Column("pixels", Integer, primary_key=True, autoincrement=False),
    Column("device_s", Float, nullable=False),
    Column("lane_s", Float, nullable=False),
    Column("learned_at", UtcDateTime, nullable=False),
)

# whom to call when a job has ended; again no foreign key
webhooks = Table(
    "webhooks",
    metadata,
    Column("job_id", String(32), primary_key=True),
    Column("url", Text, nullable=False),
    Column("root", Text, nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("due_at", UtcDateTime, nullable=False),
    Index("webhooks_by_due", "due_at"),
)

# files of tenants: lines of batches, and their answers; the bytes are in the image store
files = Table(
    "files",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("filename", String(255), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Index("files_by_tenant", "tenant", "id"),
    Index("files_by_expiry", "expires_at"),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("key_id", String(64)),
    Column("endpoint", String(64), nullable=False),
    Column("input_file", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("options", JSON, nullable=False),
    Column("problems", JSON(none_as_null=True)),
    Column("total", Integer, nullable=False, server_default=text("0")),
    Column("completed", Integer, nullable=False, server_default=text("0")),
    Column("failed", Integer, nullable=False, server_default=text("0")),
    Column("device_s", Float, nullable=False, server_default=text("0")),
    Column("output_file", String(32)),
    Column("error_file", String(32)),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("begun_at", UtcDateTime),
    Column("closed_at", UtcDateTime),
    Column("ended_at", UtcDateTime),
    Column("owner", String(128)),
    Column("fence", Integer, nullable=False, server_default=text("0")),
    Column("lease_until", UtcDateTime),
    Index("batches_by_tenant", "tenant", "id"),
    Index("batches_by_lease", "state", "lease_until"),
    Index("batches_by_end", "ended_at"),
    Index("batches_by_input", "input_file"),
)

# a row for each line of a batch that has become a job, or was refused; again no foreign key
batch_lines = Table(
    "batch_lines",
    metadata,
    Column("batch_id", String(32), primary_key=True),
    Column("line", Integer, primary_key=True, autoincrement=False),
    Column("job_id", String(32)),
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("error_field", String(255)),
    Index("batch_lines_by_job", "job_id"),
)

# what was changed of models and files of weights at run time, by kind ("model", "alias", "file") and name
registry_entries = Table(
    "registry_entries",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("name", String(192), primary_key=True),
    Column("content", JSON, nullable=False),
)

# each change of such an entry, counted from 1 on
registry_changes = Table(
    "registry_changes",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, nullable=False),
    Column("tenant", String(128), nullable=False),
    Column("key_id", String(64)),
    Column("kind", String(16), nullable=False),
    Column("name", String(192), nullable=False),
    Column("before", JSON(none_as_null=True)),
    Column("after", JSON(none_as_null=True)),
)
