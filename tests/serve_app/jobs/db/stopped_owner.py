"""A job's owner in a process of its own, for a test that stops it: claims a job, and goes on when it reads a line.

    python stopped_owner.py DATABASE_URL JOB_ID

It then says, as JSON, what came of each of its writes.
"""

import asyncio
import json
import sys
from typing import Any

from serve_app.errors import StaleLease
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.job import JobProgress


async def own(url: str, job_id: str) -> dict[str, Any]:
    """Whether the heartbeat and the progress were of a lost job, and which error keeping and ending it met."""
    store = JobStore(url)
    await store.open()
    claimed = await store.claim(job_id, owner="stopped", lease_s=5, max_attempts=3)
    assert claimed is not None
    held = {job_id: claimed.fence}
    print("claimed", flush=True)  # noqa: T201
    await asyncio.to_thread(sys.stdin.readline)
    said: dict[str, Any] = {
        "heartbeat": job_id in (await store.heartbeat(held, lease_s=5)).lost,
        "progress": job_id in (await store.progress(held, {job_id: JobProgress(1, 2, 0, 0.0)})).lost,
    }
    writes = {
        "keep": store.keep(job_id, claimed.fence, {(0, 0): b"stale"}),
        "complete": store.complete(job_id, claimed.fence, {"images": ["stale"]}),
        "fail": store.fail(job_id, claimed.fence, code="stale", message="stale"),
        "release": store.release(job_id, claimed.fence),
    }
    for name, write in writes.items():
        try:
            await write
            said[name] = "written"
        except StaleLease as error:
            said[name] = type(error).__name__
    await store.close()
    return said


if __name__ == "__main__":
    print(json.dumps(asyncio.run(own(*sys.argv[1:]))))  # noqa: T201
