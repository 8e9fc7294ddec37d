"""What a process prints when it dies, of an outage, a bug or an abort in mid-job: no prompt and no password."""

import asyncio
import sys
from pathlib import Path

import pytest

PROMPT, PASSWORD = "SENTINEL-PROMPT a large red circle", "SENTINEL-PASSWORD"

PROCESS = """
import asyncio, faulthandler, os, sqlite3, sys
from sqlalchemy import insert
from serve_app.observability import logs
from serve_app.jobs.job import utc_now
from serve_app.jobs.db.schema import jobs
from serve_app.jobs.db.store import JobStore

faulthandler.enable()  # as Ray's workers have it
logs.configure()
prompt, password, path, end = sys.argv[1:]

async def main():
    store = JobStore(f"sqlite+aiosqlite:///{path}")
    await store.open()
    request = {"prompt": prompt}
    job = (await store.create(request, max_queued=9))[0]
    with logs.sensitive(prompt):
        if end == "abort":
            os.abort()
        if end == "bug":
            again = insert(jobs).values(id=job.id, tenant="", state="queued", request=request, created_at=utc_now())
            await store._database.write(lambda connection: connection.execute(again))
        if end == "outage":
            other = sqlite3.connect(path)
            other.execute("DROP TABLE jobs")
            other.close()
            await store.create(request, max_queued=9)
        if end == "no-server":
            await JobStore(f"postgresql+asyncpg://darkroom:{password}@127.0.0.1:1/darkroom").open()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("end", "last_words"),
    [
        ("abort", "Fatal Python error: Aborted"),
        ("bug", "sqlalchemy.exc.IntegrityError"),
        ("outage", "serve_app.errors.StoreUnavailable"),
        ("no-server", "serve_app.errors.StoreUnavailable"),
    ],
)
async def test_a_process_that_dies_tells_neither_prompt_nor_password(tmp_path: Path, end: str, last_words: str) -> None:
    dying = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROCESS, PROMPT, PASSWORD, str(tmp_path / "jobs.db"), end),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await dying.communicate()
    assert dying.returncode != 0
    assert last_words in printed.decode()
    assert b"SENTINEL" not in printed
