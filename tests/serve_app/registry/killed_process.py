"""A process that changes the registry without end, and is killed while it does."""

import asyncio
import random
import sys

from serve_app.jobs.db.store import JobStore


async def killed_in_mid_change(module: str, *arguments: str, store: JobStore, changes: int) -> None:
    """Run a module, which prints "begun", until the registry has so many changes more; then kill -9 within 0.1 s."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"begun\n"
    before = await store.registry.version()
    while await store.registry.version() < before + changes:  # noqa: ASYNC110  # another process' work
        await asyncio.sleep(0.01)
    await asyncio.sleep(random.random() * 0.1)
    process.kill()
    await process.wait()
