"""Turns at something that only so many may use at a time: the more important go first, then whoever came first.

Knows nothing of what is used. Belongs to one event loop.
"""

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class PrioritySemaphore:
    """places: how many may have their turn at the same time."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = 0

    @asynccontextmanager
    async def acquire(self, priority: int) -> AsyncIterator[None]:
        """A turn for as long as the block takes; the higher the priority, the sooner it comes."""
        if self._free:
            self._free -= 1
        else:
            await self._called(priority)
        try:
            yield
        finally:
            self._next()

    async def _called(self, priority: int) -> None:
        call: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrivals += 1
        heapq.heappush(self._waiting, (-priority, self._arrivals, call))
        try:
            await call
        except asyncio.CancelledError:
            if call.done() and not call.cancelled():  # called and cancelled at once
                self._next()
            raise

    def _next(self) -> None:
        while self._waiting:
            call = heapq.heappop(self._waiting)[2]
            if not call.done():
                call.set_result(None)
                return
        self._free += 1
