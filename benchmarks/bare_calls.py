"""The bare pipeline's calls, in a process of their own that loads once: alone on the machine, or in turns with others.

Taking turns is how a shared machine whose speed drifts can still say what a service adds to a call.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import cast

from benchmarks.service_requests import ImageRequest

_ROOT = Path(__file__).resolve().parent.parent
_WARM_UP = 2

BareCall = Callable[[ImageRequest], Awaitable[float]]
"""Draws what is asked; the seconds of the pipeline's call."""


@asynccontextmanager
async def bare_calls(checkpoint: str, requests: Iterator[ImageRequest]) -> AsyncIterator[BareCall]:
    """The process, warmed up with the first of the requests. Calls raise RuntimeError if it ends."""
    first = list(islice(requests, _WARM_UP))
    command = ["-m", "benchmarks.classic", "bare", checkpoint, "--sampler", first[0].sampler]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=_ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    asked = cast(asyncio.StreamWriter, process.stdin)
    answered = cast(asyncio.StreamReader, process.stdout)

    async def call(request: ImageRequest) -> float:
        asked.write(request.model_dump_json().encode() + b"\n")
        line = await answered.readline()
        if not line:
            raise RuntimeError("the process of the bare calls has ended")
        return float(line)

    try:
        for request in first:
            await call(request)
        yield call
    finally:
        asked.close()
        await process.wait()
