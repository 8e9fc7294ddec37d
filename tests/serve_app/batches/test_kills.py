"""A batch outlives its routers: kill -9 in mid-batch, and each line is one job and one answer, in its order.

`BATCH_LINES=1002 BATCH_KILLS=5` makes it a large one.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select

from serve_app.batches.batch import Batch, StoredFile
from serve_app.config.settings import Settings
from serve_app.errors import StoreUnavailable
from serve_app.jobs.db.schema import batch_lines, jobs
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.job import utc_now
from serve_app.stages.client import Stages
from tests.serve_app.api.openai.batch_client import GENERATIONS, jsonl, line
from tests.serve_app.conftest import catalogue
from tests.serve_app.front import Front, front

LINES = int(os.environ.get("BATCH_LINES", "36"))  # a multiple of 6
KILLS = int(os.environ.get("BATCH_KILLS", "2"))
PATIENCE_S = 60.0 + 2 * LINES


def settings_of(database_url: str, folder: Path) -> Settings:
    return Settings.model_validate(
        {
            **catalogue(),
            "jobs": {"database_url": database_url, "lease_s": 1.0, "heartbeat_s": 0.3, "max_attempts": 50},
            "images": {"url": str(folder / "images")},
            "batches": {"poll_s": 0.1, "in_flight": 4},
        }
    )


async def sent(one: Front, number: int) -> Batch:
    """A batch of so many lines; every sixth of them is refused, every sixth unsafe."""
    store = one.service.store
    lines = [
        line(
            f"line {index}",
            prompt=f"a slow circle, number {index}",
            seed=2 * index + (index % 6 == 1),
            steps=10,
            **({"size": "8x8"} if index % 6 == 0 else {"response_format": "url"}),
        )
        for index in range(number)
    ]
    content = jsonl(lines)

    async def parts() -> AsyncGenerator[bytes, None]:
        yield content

    file = StoredFile(store.new_id(), "", "lines.jsonl", "batch", len(content), utc_now(), None)
    await one.service.images.write_file(file.id, parts())
    await store.files.add(file, max_files=9, max_bytes=1 << 30)
    batch, _ = await store.batches.create(
        store.new_id(),
        tenant="",
        key_id=None,
        endpoint=GENERATIONS,
        input_file=file.id,
        options={"root": "http://darkroom", "metadata": None, "completion_window": "24h", "output_expires_s": None},
        window_s=3600,
        max_unfinished=9,
    )
    return batch


async def lines_known(store: JobStore, batch: Batch) -> int:
    return len(await store.batches.lines(batch.id))


async def killed_in_mid_batch(settings: Settings, store: JobStore, batch: Batch, more: int, owner: str) -> None:
    """Let a router draw so many lines more, then kill it."""
    until_known = await lines_known(store, batch) + more
    command = [sys.executable, "-m", "tests.serve_app.batches.router_process", settings.model_dump_json(), owner]
    process = await asyncio.to_thread(subprocess.Popen, command, stderr=subprocess.PIPE)
    try:
        async with asyncio.timeout(PATIENCE_S):
            known = 0
            while known < until_known:
                assert process.poll() is None, process.stderr and process.stderr.read().decode()[-3000:]
                await asyncio.sleep(0.02)
                with suppress(StoreUnavailable):  # a database of a machine that does other things
                    known = await lines_known(store, batch)
    finally:
        process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(process.communicate)


async def test_each_line_is_answered_once_under_kill_9(database_url: str, tmp_path: Path, stages: Stages) -> None:
    settings = settings_of(database_url, tmp_path)
    async with front(settings, stages, owner="last") as one:
        store = one.service.store
        batch = await sent(one, LINES)
        for number in range(KILLS):
            await killed_in_mid_batch(settings, store, batch, LINES // (KILLS + 1), f"router-{number}")
        known = await store.batches.get(batch.id)
        assert known.fence >= KILLS  # (of a machine that stands still leases end by themselves)
        assert (known.total, known.ended_at) == (LINES, None)
        assert 0 < await lines_known(store, batch) < LINES
        await one.maintenance.start()
        await one.batches.start()
        async with asyncio.timeout(PATIENCE_S):
            while not (known := await store.batches.get(batch.id)).state.terminal:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        one.batches.check()
        one.maintenance.check()
        await one.maintenance.stop()
        assert (known.state, known.total) == ("completed", LINES)

        def all_rows(connection: Connection) -> tuple[int, int, list[str]]:
            count = select(func.count())
            states = connection.scalars(select(jobs.c.state)).all()
            return (
                connection.scalar(count.select_from(batch_lines)) or 0,
                connection.scalar(select(func.count(batch_lines.c.job_id.distinct()))) or 0,
                list(states),
            )

        lines, distinct_jobs, states = await store._database.read(all_rows)
        refused = unsafe = LINES // 6
        assert lines == LINES
        assert distinct_jobs == len(states) == LINES - refused  # no job that is no line's
        assert Counter(states) == {"complete": LINES - refused - unsafe, "blocked": unsafe}
        answers = [await read(one, file_id) for file_id in (known.output_file, known.error_file)]
        names = [[int(answer["custom_id"].removeprefix("line ")) for answer in file] for file in answers]
        assert names == [
            [index for index in range(LINES) if index % 6 > 1],
            [index for index in range(LINES) if index % 6 <= 1],
        ]
        assert (known.completed, known.failed) == (len(names[0]), len(names[1]))
        assert [answer["response"]["body"]["data"][0]["seed"] for answer in answers[0]] == [2 * n for n in names[0]]


async def read(one: Front, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    content = b"".join([part async for part in one.service.images.read_file(file_id)])
    return [json.loads(text) for text in content.splitlines()]
