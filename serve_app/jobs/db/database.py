"""The job database: transactions on SQLite or Postgres, its tables brought up to date, its outages.

A transaction is a function of a connection; what it calls are statements and nothing slow, for others may wait for its
end. Knows nothing of jobs but their schema.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from asyncpg import InterfaceError, PostgresError
from sqlalchemy import Connection, exc, make_url, text

from serve_app.errors import StoreUnavailable
from serve_app.jobs.db.migration import migrate
from serve_app.jobs.db.postgres import PostgresServer
from serve_app.jobs.db.sqlite import SqliteFile

T = TypeVar("T")

# any constant: the key of the advisory lock by which Postgres lets one writer of the queue in at a time
_QUEUE_LOCK = 0x6461726B726F6F6D

# errors of the statement rather than of the database: bugs, which must not pass as an outage
_BUGS = (exc.IntegrityError, exc.ProgrammingError, exc.DataError, exc.NotSupportedError)


class Database:
    """Transactions on one database by an SQLAlchemy URL. Belongs to one event loop.

    url: "sqlite:///path" ("sqlite+aiosqlite:///path" is the same) or "postgresql+asyncpg://…".
    busy_timeout_s: how long SQLite waits for another process's transaction, Postgres for a connection or an
        answer, and a task for a connection of the pool.
    """

    def __init__(self, url: str, busy_timeout_s: float = 15.0) -> None:
        parsed = make_url(url)
        of_kind = SqliteFile if parsed.get_backend_name() == "sqlite" else PostgresServer
        self._transactions: SqliteFile | PostgresServer = of_kind(parsed, busy_timeout_s)

    async def open(self) -> None:
        """Create the tables, or bring them up to date. Raises StoreUnavailable, or migration.NewerDatabase."""
        with _outages():
            await self._transactions.open()

        def bring_up_to_date(connection: Connection) -> None:
            keep_others_out(connection)
            migrate(connection)

        await self.write(bring_up_to_date)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """The result of a transaction that may write, once it is committed; rolled back where `work` raises."""
        with _outages():
            return await self._transactions.write(work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """The result of a transaction that only reads; on SQLite it waits for no writer."""
        with _outages():
            return await self._transactions.read(work)

    async def close(self) -> None:
        """Close every connection."""
        await self._transactions.close()


def keep_others_out(connection: Connection) -> None:
    """Until the end of this transaction no other one passes this line. SQLite's writers do so anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _QUEUE_LOCK})


@contextmanager
def _outages() -> Iterator[None]:
    """Errors of the database, not of the statement, leave the block as StoreUnavailable, the cause kept."""
    try:
        yield
    except _BUGS:
        raise
    except (exc.DBAPIError, exc.TimeoutError, OSError, PostgresError, InterfaceError) as error:
        # (the last two: a Postgres that lets nobody in, which SQLAlchemy passes on as it is)
        raise StoreUnavailable("the job database can't be reached") from error
