"""Transactions on a Postgres server: each has a connection of the pool for itself. Knows no tables."""

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import URL, Connection
from sqlalchemy.ext.asyncio import create_async_engine

T = TypeVar("T")


class PostgresServer:
    """Belongs to one event loop.

    timeout_s: how long a connection, an answer, and a place in the pool are waited for.
    """

    def __init__(self, url: URL, timeout_s: float) -> None:
        # create_async_engine doesn't connect
        self._engine = create_async_engine(
            url,
            pool_timeout=timeout_s,
            hide_parameters=True,  # of its errors' texts: they end up in logs, and prompts are among them
            pool_pre_ping=True,
            connect_args={"timeout": timeout_s, "command_timeout": timeout_s},  # one that hangs is an outage too
        )

    async def open(self) -> None:
        """There is nothing to prepare."""

    async def write(self, work: Callable[[Connection], T]) -> T:
        """The result of `work`, once it is committed; where it raises, nothing that it wrote stays."""
        async with self._engine.begin() as connection:
            return await connection.run_sync(work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """The result of `work`, of which nothing is committed."""
        async with self._engine.connect() as connection:
            return await connection.run_sync(work)

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()
