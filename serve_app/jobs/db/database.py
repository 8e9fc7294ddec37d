"""The job database: transactions on an SQLite file or a Postgres server, and their outages.

A transaction is a function of a connection. It runs statements and nothing slow, as others may wait for its end.
"""

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from asyncpg import InterfaceError, PostgresError
from sqlalchemy import URL, Connection, create_engine, event, exc, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from serve_app.errors import StoreUnavailable
from serve_app.jobs.db.migrations.migrate import migrate

P = ParamSpec("P")
T = TypeVar("T")

# any constant: the key of the advisory lock by which Postgres lets one writer of the queue in at a time
_QUEUE_LOCK = 0x6461726B726F6F6D

# errors of the statement rather than of the database: bugs, which must not pass as an outage
_BUGS = (exc.IntegrityError, exc.ProgrammingError, exc.DataError, exc.NotSupportedError)

# threads that read an SQLite file
_READERS = 4
_LOCK_RETRY_S = 0.01


class Database:
    """Transactions on one database. Belongs to one event loop.

    Args:
        url: SQLAlchemy's: "sqlite:///path" ("sqlite+aiosqlite:///path" is the same) or "postgresql+asyncpg://…".
        busy_timeout_s: seconds that SQLite waits for another process's transaction, and Postgres for a connection, for
            an answer, and for a place in the pool.
    """

    def __init__(self, url: str, busy_timeout_s: float = 15.0) -> None:
        parsed = make_url(url)
        of_kind = SqliteFile if parsed.get_backend_name() == "sqlite" else PostgresServer
        self._server: SqliteFile | PostgresServer = of_kind(parsed, busy_timeout_s)

    async def open(self) -> None:
        """Create the tables, or bring them up to date.

        Raises:
            StoreUnavailable: the database can't be reached.
            UnknownVersion: another version of the software wrote it.
        """

        def bring_up_to_date(connection: Connection) -> None:
            keep_others_out(connection)
            migrate(connection)

        with _outages():
            await self._server.open()
            await self._server.write(bring_up_to_date)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run a transaction that may write.

        Returns:
            Its result, once it is committed. If `work` raises, or the caller is cancelled, it is rolled back.

        Raises:
            StoreUnavailable: the database can't be reached, or is full.
        """
        with _outages():
            return await self._server.write(work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run a transaction that only reads; on SQLite it waits for no writer. Raises StoreUnavailable."""
        with _outages():
            return await self._server.read(work)

    async def close(self) -> None:
        """Close every connection."""
        await self._server.close()


class Transactions:
    """Work on some rows of a database: each method under `reads` or `writes` is a transaction.

    Args:
        database: may be shared.
        clock: the present time, with a zone.
    """

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock


S = TypeVar("S", bound=Transactions)


def writes(
    method: Callable[Concatenate[S, Connection, P], T],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Make a function of a connection a method that runs it by `Database.write`."""

    @wraps(method)
    async def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._database.write(lambda connection: method(self, connection, *args, **kwargs))

    return call


def reads(
    method: Callable[Concatenate[S, Connection, P], T],
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T]]:
    """Make a function of a connection a method that runs it by `Database.read`."""

    @wraps(method)
    async def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._database.read(lambda connection: method(self, connection, *args, **kwargs))

    return call


class SqliteFile:
    """Transactions on an SQLite file: one thread writes, a few others read.

    WAL and synchronous=FULL: what was committed outlives a crash of the machine. BEGIN IMMEDIATE: a transaction can't
    fail half-way on a lock. A thread runs a transaction as a whole, because the way from the event loop to a thread and
    back costs more than a statement.

    Args:
        url: of a file.
        busy_timeout_s: seconds to wait for another process's transaction; for a write they begin with its call, so
            that many writes fail as soon as one.
    """

    def __init__(self, url: URL, busy_timeout_s: float) -> None:
        if url.database in (None, "", ":memory:") or "mode=memory" in str(url):
            raise ValueError("jobs.database_url: an SQLite database in memory forgets its jobs; name a file")
        self._path = Path(str(url.database).removeprefix("file:"))
        self._busy_timeout_s = busy_timeout_s
        # create_engine doesn't connect
        self._engine = create_engine(
            url.set(drivername="sqlite"),
            pool_size=_READERS + 1,
            hide_parameters=True,  # of its errors' texts: they end up in logs, and prompts are among them
            connect_args={"timeout": busy_timeout_s},
        )
        event.listen(self._engine, "connect", self._configure)
        event.listen(self._engine, "begin", self._begin)
        self._writer = ThreadPoolExecutor(1, "jobs-write")
        self._readers = ThreadPoolExecutor(_READERS, "jobs-read")

    def _begin(self, connection: Connection) -> None:
        deadline = connection.get_execution_options().get("darkroom_deadline")  # monotonic seconds; of a write
        wait_s = self._busy_timeout_s if deadline is None else max(0.0, deadline - time.monotonic())
        # (said each time: a connection of the pool may have the timeout of the write before)
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {round(wait_s * 1000)}").close()
        connection.exec_driver_sql("BEGIN" if deadline is None else "BEGIN IMMEDIATE")

    def _configure(self, connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver begins no transaction of its own; _begin does
        deadline = time.monotonic() + self._busy_timeout_s
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL").close()
            except sqlite3.OperationalError as error:
                # others that open a new file: SQLite doesn't wait where both want this lock, and one of them goes on
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() >= deadline:
                    raise
                time.sleep(_LOCK_RETRY_S)
            else:
                break
        connection.execute("PRAGMA synchronous = FULL").close()

    async def open(self) -> None:
        """Create the file's folder."""
        await asyncio.to_thread(self._path.parent.mkdir, parents=True, exist_ok=True)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """As Database.write."""
        caller_left = threading.Event()
        deadline = time.monotonic() + self._busy_timeout_s

        def transaction() -> T:
            with (
                self._engine.connect().execution_options(darkroom_deadline=deadline) as connection,
                connection.begin(),
            ):
                result = work(connection)
                if caller_left.is_set():
                    raise _CallerLeft
            return result

        try:
            return await asyncio.get_running_loop().run_in_executor(self._writer, transaction)
        except asyncio.CancelledError:
            caller_left.set()
            raise

    async def read(self, work: Callable[[Connection], T]) -> T:
        """As Database.read, in one snapshot."""

        def transaction() -> T:
            with self._engine.connect() as connection:
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(self._readers, transaction)

    async def close(self) -> None:
        """Let pending transactions end, then close every connection."""
        for threads in (self._writer, self._readers):
            await asyncio.to_thread(threads.shutdown)
        self._engine.dispose()


class _CallerLeft(Exception):
    """The caller has gone: the transaction is rolled back."""


class PostgresServer:
    """Transactions on a Postgres server; each has a connection of the pool for itself.

    Args:
        url: of the server.
        timeout_s: seconds to wait for a connection, for an answer, and for a place in the pool.
    """

    def __init__(self, url: URL, timeout_s: float) -> None:
        # create_async_engine doesn't connect
        self._engine = create_async_engine(
            url,
            pool_timeout=timeout_s,
            hide_parameters=True,
            pool_pre_ping=True,
            connect_args={"timeout": timeout_s, "command_timeout": timeout_s},  # one that hangs is an outage too
        )

    async def open(self) -> None:
        """There is nothing to prepare."""

    async def write(self, work: Callable[[Connection], T]) -> T:
        """As Database.write."""
        async with self._engine.begin() as connection:
            return await connection.run_sync(work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """As Database.read."""
        async with self._engine.connect() as connection:
            return await connection.run_sync(work)

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()


def keep_others_out(connection: Connection) -> None:
    """Let no other transaction pass this call until this one ends. SQLite's writers exclude each other anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _QUEUE_LOCK})


@contextmanager
def _outages() -> Iterator[None]:
    """Raise errors of the database, but not of the statement, as StoreUnavailable with their cause."""
    try:
        yield
    except _BUGS:
        raise
    except (exc.DBAPIError, exc.TimeoutError, OSError, PostgresError, InterfaceError) as error:
        # (the last two: a Postgres that lets nobody in, which SQLAlchemy passes on as it is)
        raise StoreUnavailable("the job database can't be reached") from error
