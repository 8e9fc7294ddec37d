"""Transactions on an SQLite file: each whole or not at all, whoever else writes, leaves or fails meanwhile."""

import asyncio
import sqlite3
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, exc, make_url

from serve_app.jobs.db.database import SqliteFile


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[SqliteFile]:
    file = SqliteFile(make_url(f"sqlite:///{tmp_path}/data/jobs.db"), busy_timeout_s=60.0)
    await file.open()
    await file.write(lambda connection: connection.exec_driver_sql("CREATE TABLE t (n INTEGER PRIMARY KEY)").close())
    yield file
    await file.close()


def put(number: int, then: Callable[[Connection], None] = lambda _connection: None) -> Callable[[Connection], int]:
    def work(connection: Connection) -> int:
        connection.exec_driver_sql("INSERT INTO t VALUES (?)", (number,))
        then(connection)
        return number

    return work


def fail(_connection: Connection) -> None:
    raise LookupError("a bug of this writer")


async def numbers(file: SqliteFile) -> list[int]:
    return await file.read(
        lambda connection: list(connection.exec_driver_sql("SELECT n FROM t ORDER BY rowid").scalars())
    )


async def all_at_once(file: SqliteFile, *works: Callable[[Connection], Any]) -> list[Any]:
    return await asyncio.gather(*(file.write(work) for work in works), return_exceptions=True)


async def test_what_one_raises_concerns_nobody_else(file: SqliteFile) -> None:
    works = [put(1), put(2, fail), put(3), put(3), put(4)]
    one, two, three, doubled, four = await all_at_once(file, *works)
    assert (one, three, four) == (1, 3, 4)
    assert isinstance(two, LookupError)
    assert isinstance(doubled, exc.IntegrityError)
    assert await numbers(file) == [1, 3, 4]


async def test_a_commit_that_fails_leaves_nothing(file: SqliteFile) -> None:
    def deny(action: int, name: str | None, *_: object) -> int:
        return sqlite3.SQLITE_DENY if (action, name) == (sqlite3.SQLITE_TRANSACTION, "COMMIT") else sqlite3.SQLITE_OK

    def authorize(by: Any) -> Callable[[Connection], None]:
        return lambda connection: connection.connection.driver_connection.set_authorizer(by)  # type: ignore[union-attr]

    with pytest.raises(exc.DatabaseError, match="not authorized"):
        await file.write(put(1, authorize(deny)))
    assert await file.write(put(2, authorize(None))) == 2  # an authorizer is the connection's, and that one is in use
    assert await numbers(file) == [2]


async def test_a_transaction_that_sqlite_gives_up_is_lost_and_harms_no_other(file: SqliteFile) -> None:
    def give_up(connection: Connection) -> None:
        connection.exec_driver_sql("INSERT OR ROLLBACK INTO t VALUES (1)")

    one, two, three = await all_at_once(file, put(1), put(2, give_up), put(3))
    assert (one, type(two), three) == (1, exc.IntegrityError, 3)
    assert await numbers(file) == [1, 3]


async def test_one_that_leaves_leaves_nothing_and_harms_nobody(file: SqliteFile) -> None:
    began, go_on = threading.Event(), threading.Event()

    def wait(_connection: Connection) -> None:
        began.set()
        assert go_on.wait(60)

    running, behind, last = (asyncio.create_task(file.write(work)) for work in (put(1, wait), put(2), put(3)))
    await asyncio.to_thread(began.wait, 60)
    for task in (running, behind):
        task.cancel()
    await asyncio.wait({running, behind})
    go_on.set()
    assert await last == 3
    assert (running.cancelled(), behind.cancelled()) == (True, True)
    assert await numbers(file) == [3]


async def test_writers_go_in_the_order_of_their_coming(file: SqliteFile) -> None:
    order: list[int] = []
    works = [put(number, lambda _connection, number=number: order.append(number)) for number in range(10)]
    await all_at_once(file, *works)
    assert order == list(range(10))


async def test_a_file_that_another_holds_too_long_fails_all_who_wait_after_one_timeout(tmp_path: Path) -> None:
    timeout_s, writers = 0.5, 20
    file = SqliteFile(make_url(f"sqlite:///{tmp_path}/jobs.db"), busy_timeout_s=timeout_s)
    await file.write(lambda connection: connection.exec_driver_sql("CREATE TABLE t (n INTEGER PRIMARY KEY)").close())
    other = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    start = time.monotonic()
    answers = await all_at_once(file, *(put(number) for number in range(writers)))
    elapsed_s = time.monotonic() - start
    assert [type(answer) for answer in answers] == [exc.OperationalError] * writers
    assert timeout_s * 0.9 <= elapsed_s <= writers * timeout_s / 2  # one after the other they would take 10 s
    other.close()
    assert await file.write(put(writers)) == writers
    assert await numbers(file) == [writers]
    await file.close()


ADD_TWENTY = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
for _ in range(20):
    connection.execute("BEGIN IMMEDIATE")
    (n,) = connection.execute("SELECT n FROM t").fetchone()
    connection.execute("UPDATE t SET n = ?", (n + 1,))
    connection.execute("COMMIT")
"""


async def test_several_processes_on_the_file_lose_nothing_of_each_other(file: SqliteFile, tmp_path: Path) -> None:
    def add(connection: Connection) -> None:
        number = connection.exec_driver_sql("SELECT n FROM t").scalar_one()
        connection.exec_driver_sql("UPDATE t SET n = ?", (number + 1,))

    await file.write(put(0))
    command = [sys.executable, "-c", ADD_TWENTY, str(tmp_path / "data" / "jobs.db")]
    others = [await asyncio.create_subprocess_exec(*command) for _ in range(2)]
    for _ in range(10):
        await all_at_once(file, *[add] * 4)
    assert [await other.wait() for other in others] == [0, 0]
    assert await numbers(file) == [80]
