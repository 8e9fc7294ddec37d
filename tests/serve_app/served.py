"""A front behind a real HTTP server on a port of its own, for clients that open their own connections."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import uvicorn

from tests.serve_app.front import Front

Answer = TypeVar("Answer")

# the event loop's own are few, and taken by stages in this process while they draw
_CLIENT_THREADS = ThreadPoolExecutor(16, thread_name_prefix="client")


async def beside(call: Callable[[], Answer]) -> Answer:
    """What a client's blocking call returns."""
    return await asyncio.get_running_loop().run_in_executor(_CLIENT_THREADS, call)


class _Server(uvicorn.Server):
    """Leaves the signals of the test's process alone."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def served(front: Front) -> AsyncIterator[str]:
    """The URL at which the front listens; blocking clients run `beside` it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(front.app, lifespan="off", log_config=None, ws="none", timeout_graceful_shutdown=1)
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            async with asyncio.timeout(10):
                while not server.started:  # noqa: ASYNC110  # uvicorn has no event for it
                    await asyncio.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for job in (await front.service.store.page(tenant=None, limit=100)).jobs:
                if not job.state.terminal:  # the client of a failed test would wait for ever
                    await front.service.cancel(job.id)
            server.should_exit = True
            await serving
