"""Transactions on an SQLite file: one thread writes, a few others read.

A statement takes microseconds; what costs is the way from the event loop to a thread and back, and the commit. So a
transaction is a function that a thread runs as a whole, and the writers that wait share one: each has a savepoint of
its own, all have one commit, and nobody hears of success before it. WAL and synchronous=FULL: what was committed
outlives a crash of the machine. BEGIN IMMEDIATE: a transaction can't fail half-way on a lock. Knows no tables.
"""

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, create_engine, event

T = TypeVar("T")

# of one transaction: how many writers share it, and for how long it takes the next of them; other processes wait for
# the file
_MOST_WRITERS, _OPEN_S = 64, 1.0

_READERS = 4


@dataclass(frozen=True, slots=True, eq=False)
class _Writer:
    """Somebody who waits for a write, and is told through `done`; cancelled where nobody waits any more."""

    work: Callable[[Connection], Any]
    done: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of a write: its result, or its error."""

    writer: _Writer
    result: Any = None
    error: Exception | None = None

    def tell(self) -> None:
        """In the event loop."""
        done = self.writer.done
        if done.done():
            return
        if self.error is None:
            done.set_result(self.result)
        else:
            done.set_exception(self.error)


class SqliteFile:
    """Belongs to one event loop.

    url: names a file. busy_timeout_s: how long another process's transaction is waited for.
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
        self._reading = self._engine.execution_options(darkroom_reads=True)
        event.listen(self._engine, "connect", self._configure)
        event.listen(self._engine, "begin", _begin)
        self._waiting: deque[_Writer] = deque()
        self._turns: asyncio.Task[None] | None = None
        self._writing_thread = ThreadPoolExecutor(1, "jobs-write")
        self._reading_threads = ThreadPoolExecutor(_READERS, "jobs-read")

    def _configure(self, connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver begins no transaction of its own; _begin does
        cursor = connection.cursor()
        try:
            cursor.execute(f"PRAGMA busy_timeout = {int(self._busy_timeout_s * 1000)}")
            cursor.execute("PRAGMA journal_mode = WAL")
            cursor.execute("PRAGMA synchronous = FULL")
        finally:
            cursor.close()

    async def open(self) -> None:
        """Create the file's folder."""
        await asyncio.to_thread(self._path.parent.mkdir, parents=True, exist_ok=True)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """The result of `work`, once it is committed; where it raises, nothing that it wrote stays.

        A caller that is cancelled before the commit leaves nothing either.
        """
        writer = _Writer(work, asyncio.get_running_loop().create_future())
        self._waiting.append(writer)
        if self._turns is None:
            # in a context of its own: it serves others than its first caller
            self._turns = asyncio.create_task(self._take_turns(), context=contextvars.Context())
        result: T = await writer.done
        return result

    async def _take_turns(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                for outcome in await loop.run_in_executor(self._writing_thread, self._write_together):
                    outcome.tell()
        finally:
            self._turns = None

    def _write_together(self) -> list[_Outcome]:
        """One transaction for those who wait now, in the order of their coming; who comes later has the next one."""
        here = len(self._waiting)
        outcomes: list[_Outcome] = []
        try:
            with self._engine.begin() as connection:
                until = time.monotonic() + _OPEN_S
                while len(outcomes) < min(here, _MOST_WRITERS) and (not outcomes or time.monotonic() < until):
                    writer = self._waiting.popleft()
                    outcomes.append(_Outcome(writer))
                    if not writer.done.cancelled():
                        outcomes[-1] = _in_savepoint(connection, writer)
        except Exception as error:  # whatever it is, those who share the transaction share it
            # where it could not even begin, all that were here have waited as long as one is to wait
            lost = [outcome.writer for outcome in outcomes] or [self._waiting.popleft() for _ in range(here)]
            return [_Outcome(writer, error=error) for writer in lost]
        return outcomes

    async def read(self, work: Callable[[Connection], T]) -> T:
        """The result of `work`, in one snapshot; it waits for no writer."""
        return await asyncio.get_running_loop().run_in_executor(self._reading_threads, self._read, work)

    def _read(self, work: Callable[[Connection], T]) -> T:
        with self._reading.connect() as connection:
            return work(connection)

    async def close(self) -> None:
        """Let who waits end, then close every connection."""
        if self._turns is not None:
            await asyncio.wait({self._turns})
        for threads in (self._writing_thread, self._reading_threads):
            await asyncio.to_thread(threads.shutdown)
        self._engine.dispose()


def _in_savepoint(connection: Connection, writer: _Writer) -> _Outcome:
    """One write among others. Raises where SQLite has given up the whole transaction."""
    savepoint = connection.begin_nested()
    try:
        result = writer.work(connection)
    except Exception as error:
        if not connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
            raise
        savepoint.rollback()
        return _Outcome(writer, error=error)
    if writer.done.cancelled():
        savepoint.rollback()
    else:
        savepoint.commit()
    return _Outcome(writer, result)


def _begin(connection: Connection) -> None:
    reads = connection.get_execution_options().get("darkroom_reads", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
