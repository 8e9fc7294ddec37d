"""The connection to the job database: transactions, SQLite's settings, outages.

SQLite runs in WAL mode with synchronous=FULL, so that what was committed outlives a crash of the machine,
and every writing transaction begins with BEGIN IMMEDIATE, so that it can't fail half-way on a lock. Postgres
takes an advisory lock where a transaction must keep others out. Knows nothing of jobs but their schema.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from asyncpg import InterfaceError, PostgresError
from sqlalchemy import Connection, event, exc, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from serve_app.errors import StoreUnavailable
from serve_app.jobs.migration import migrate

# any constant: the key of the advisory lock by which Postgres lets one writer of the queue in at a time
_QUEUE_LOCK = 0x6461726B726F6F6D

# errors of the statement rather than of the database: bugs, which must not pass as an outage
_BUGS = (exc.IntegrityError, exc.ProgrammingError, exc.DataError, exc.NotSupportedError)


class Database:
    """Transactions on one database by an async SQLAlchemy URL. Belongs to one event loop.

    url: "sqlite+aiosqlite:///path" or "postgresql+asyncpg://…".
    busy_timeout_s: how long SQLite waits for another process's transaction, Postgres for a connection or an
        answer, and a task for a connection of the pool.
    """

    def __init__(self, url: str, busy_timeout_s: float = 15.0) -> None:
        parsed = make_url(url)
        self._is_sqlite = parsed.get_backend_name() == "sqlite"
        self._path: Path | None = None
        if self._is_sqlite:
            if parsed.database in (None, "", ":memory:") or "mode=memory" in str(parsed):
                raise ValueError("jobs.database_url: an SQLite database in memory forgets its jobs; name a file")
            self._path = Path(str(parsed.database).removeprefix("file:"))
        self._busy_timeout_s = busy_timeout_s
        # create_async_engine doesn't connect
        self._engine = create_async_engine(
            parsed,
            pool_timeout=busy_timeout_s,
            hide_parameters=True,  # of its errors' texts: they end up in logs, and prompts are among them
            pool_pre_ping=not self._is_sqlite,
            # a Postgres that hangs is an outage too
            connect_args={"timeout": busy_timeout_s} | ({} if self._is_sqlite else {"command_timeout": busy_timeout_s}),
        )
        self._reading = self._engine.execution_options(darkroom_reads=True)
        # SQLite takes one writer at a time and others poll for their turn; within a process they queue up
        self._write_turn: AbstractAsyncContextManager[Any] = asyncio.Lock() if self._is_sqlite else nullcontext()
        if self._is_sqlite:
            event.listen(self._engine.sync_engine, "connect", self._configure_sqlite)
            event.listen(self._engine.sync_engine, "begin", _begin_sqlite)

    def _configure_sqlite(self, connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver begins no transaction of its own; _begin_sqlite does
        cursor = connection.cursor()
        try:
            cursor.execute(f"PRAGMA busy_timeout = {int(self._busy_timeout_s * 1000)}")
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = FULL")
        finally:
            cursor.close()

    async def open(self) -> None:
        """Create the file's folder (SQLite's) and the tables, or bring them up to date.

        Raises StoreUnavailable, or migration.NewerDatabase.
        """
        with _outages():
            if self._path is not None:
                await asyncio.to_thread(self._path.parent.mkdir, parents=True, exist_ok=True)
            async with self.write() as connection:
                await self.keep_others_out(connection)
                await connection.run_sync(migrate)

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that may write: committed at the end of the block, rolled back by an exception."""
        async with self._write_turn:
            with _outages():
                async with self._engine.begin() as connection:
                    yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that only reads; on SQLite it waits for no writer."""
        with _outages():
            async with self._reading.connect() as connection:
                yield connection

    async def keep_others_out(self, connection: AsyncConnection) -> None:
        """Until the end of this transaction no other one passes this line. SQLite's writers do so anyway."""
        if not self._is_sqlite:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _QUEUE_LOCK})

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()


def _begin_sqlite(connection: Connection) -> None:
    reads = connection.get_execution_options().get("darkroom_reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


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
