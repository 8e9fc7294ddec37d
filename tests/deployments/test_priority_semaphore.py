"""Who waits for a turn gets it by importance, then by arrival; one who leaves takes none along."""

import asyncio

import pytest

from deployments.priority_semaphore import PrioritySemaphore


async def test_by_importance_then_by_arrival() -> None:
    turns, order, go = PrioritySemaphore(1), list[str](), asyncio.Event()

    async def use(name: str, priority: int) -> None:
        async with turns.acquire(priority):
            order.append(name)
            await go.wait()

    async with asyncio.TaskGroup() as group:
        for name, priority in (("first", 0), ("late", 0), ("normal", 1), ("urgent", 2), ("normal too", 1)):
            group.create_task(use(name, priority))
            await asyncio.sleep(0)
        go.set()
    assert order == ["first", "urgent", "normal", "normal too", "late"]


async def test_so_many_at_a_time() -> None:
    turns, inside, most = PrioritySemaphore(2), 0, 0

    async def use() -> None:
        nonlocal inside, most
        async with turns.acquire(1):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(use() for _ in range(7)))
    assert most == 2


async def test_who_leaves_takes_no_turn_along() -> None:
    turns = PrioritySemaphore(1)

    async def wait() -> None:
        async with turns.acquire(1):
            pass

    async with turns.acquire(1):
        leaving = asyncio.create_task(wait())
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        called = asyncio.create_task(wait())
        await asyncio.sleep(0)
    called.cancel()  # its turn has come, and it hasn't woken yet
    with pytest.raises(asyncio.CancelledError):
        await called
    async with asyncio.timeout(10), turns.acquire(1):
        pass
