"""A process that is stopped past its lease and goes on afterwards writes nothing. At random: `make chaos`."""

import asyncio
import json
import signal
import sys
from datetime import timedelta
from pathlib import Path

import psutil

from serve_app.jobs.db.store import JobStore
from serve_app.jobs.job import utc_now
from serve_app.jobs.states import JobState
from tests.serve_app.front import until

ROOT = Path(__file__).parents[4]
SCRIPT = Path(__file__).with_name("stopped_owner.py")


async def test_an_owner_stopped_past_its_lease_writes_nothing(sqlite_url: str) -> None:
    later = JobStore(sqlite_url, clock=lambda: utc_now() + timedelta(seconds=60))
    await later.open()
    job, _ = await later.create({"prompt": "x"}, max_queued=10)
    pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
    owner = await asyncio.create_subprocess_exec(sys.executable, SCRIPT, sqlite_url, job.id, cwd=ROOT, **pipes)
    assert owner.stdin is not None
    assert owner.stdout is not None
    assert await owner.stdout.readline() == b"claimed\n"
    owner.send_signal(signal.SIGSTOP)
    await until(lambda: psutil.Process(owner.pid).status() == psutil.STATUS_STOPPED)
    adopted = await later.claim(job.id, owner="other", lease_s=3600, max_attempts=3)
    assert adopted is not None
    assert adopted.fence == 2
    owner.send_signal(signal.SIGCONT)
    said, _ = await owner.communicate(b"\n")
    assert json.loads(said) == {
        "heartbeat": True,
        "progress": True,
        **dict.fromkeys(("keep", "complete", "fail", "release"), "StaleLease"),
    }
    assert await later.get(job.id) == adopted
    assert await later.kept(job.id) == {}
    ended = await later.complete(job.id, adopted.fence, {"images": ["its own"]})
    assert (ended.state, ended.result) == (JobState.COMPLETE, {"images": ["its own"]})
    await later.close()
