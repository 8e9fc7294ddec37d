"""The tables of the job store, and how a database of an older version is brought up to them.

A new database gets the tables as they are here and is stamped with VERSION. A change of the tables raises
VERSION and adds the statements that bring the version before up to it to MIGRATIONS. A database that is newer
than the code is refused. What the rows mean is store.py's business.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    DateTime,
    Dialect,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    false,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.types import TypeDecorator

VERSION = 1

# version -> statements that bring a database of the version before up to it
MIGRATIONS: Mapping[int, Sequence[str]] = {}


class UtcDateTime(TypeDecorator[datetime]):
    """A moment with its zone, stored as UTC; SQLite keeps it as text without a zone, which sorts by time."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """To UTC. Raises ValueError for a moment without a zone."""
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
    Column("heartbeat_at", UtcDateTime),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("cancel_requested", Boolean, nullable=False, server_default=false()),
    Index("jobs_by_state", "state", "id"),
    Index("jobs_by_tenant", "tenant", "id"),
    Index("jobs_by_lease", "state", "lease_until"),
    Index("jobs_by_end", "finished_at"),
)

schema_version = Table("schema_version", metadata, Column("version", Integer, nullable=False))


class NewerDatabase(RuntimeError):
    """The database was written by a newer version of the software."""


def migrate(
    connection: Connection,
    version: int = VERSION,
    migrations: Mapping[int, Sequence[str]] = MIGRATIONS,
) -> None:
    """Create the tables, or bring them up to `version`. To be called in a transaction that keeps others out.

    Raises NewerDatabase, and KeyError where a step of `migrations` is missing.
    """
    if not inspect(connection).has_table(schema_version.name):
        metadata.create_all(connection)
        connection.execute(insert(schema_version).values(version=version))
        return
    found = connection.execute(select(schema_version.c.version)).scalar_one()
    if found > version:
        raise NewerDatabase(f"the job database has version {found}, this software knows {version}")
    for step in range(found + 1, version + 1):
        for statement in migrations[step]:
            connection.execute(text(statement))
    if found < version:
        connection.execute(update(schema_version).values(version=version))
