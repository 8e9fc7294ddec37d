"""OpenAI's batches by OpenAI's own package, beside a driver that runs."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from openai import AsyncOpenAI
from openai.types import Batch

from tests.serve_app.front import Front

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
ENDS = ("completed", "failed", "expired", "cancelled")

# the driver looks for batches so often
POLL_S = 0.05


def line(custom_id: str, url: str = GENERATIONS, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"prompt": "a red circle", **body}}


def jsonl(lines: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


@asynccontextmanager
async def driving(*fronts: Front) -> AsyncIterator[None]:
    for one in fronts:
        await one.batches.start()
    try:
        yield
    finally:
        for one in fronts:
            one.batches.check()


async def created(client: AsyncOpenAI, content: bytes, endpoint: Any = GENERATIONS, **fields: Any) -> Batch:
    file = await client.files.create(file=("lines.jsonl", content), purpose="batch")
    return await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **fields)


async def ended(client: AsyncOpenAI, batch: Batch, timeout_s: float = 60.0) -> Batch:
    async with asyncio.timeout(timeout_s):
        while (now := await client.batches.retrieve(batch.id)).status not in ENDS:  # noqa: ASYNC110  # over HTTP
            await asyncio.sleep(POLL_S)
    return now


async def answers(client: AsyncOpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """The lines of an output or error file."""
    if file_id is None:
        return []
    content = await client.files.content(file_id)
    return [json.loads(one) for one in content.text.splitlines()]
