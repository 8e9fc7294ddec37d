"""Whatever clients do, nothing is left of it: no descriptor, task, object, file or row. For long: `make chaos`."""

import asyncio
import gc
import os
import re
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.front import JSON, Front, front, until


async def everything(one: Front, number: int) -> None:
    """What is right, what is wrong, and what is given up halfway."""
    assert (await one.generate(seed=2 * number, n=2)).json()["status"] == "complete"
    assert (await one.generate(model="demo-sdxl", seed=2 * number)).json()["status"] == "complete"
    assert (await one.generate(steps=10**9)).status_code == 422
    assert (await one.http.post("/generate", content=b"x" * (33 << 20), headers=JSON)).status_code == 413
    job = (await one.generate("endless", wait=None)).json()
    await until(lambda: one.service.hub.latest(job["job_id"]) is not None)
    assert (await one.http.delete(job["links"]["cancel"])).status_code == 200
    assert [name for name, _ in await one.events(job["job_id"])][-1] == "cancelled"
    await one.goes_with_its_client(
        one.http.post("/sdapi/v1/txt2img", json={"prompt": "endless", "width": 256, "height": 256})
    )
    await until(lambda: one.service.runner.depth() == (0, 0))


def in_use() -> dict[str, int]:
    """Of this process: what a request may take, and must give back."""
    gc.collect()
    ours = Counter(type(one).__name__ for one in gc.get_objects() if str(type(one).__module__).startswith("serve_app"))
    return {**_descriptors(), **ours}


def _descriptors() -> Counter[str]:
    """By what they are open on, so that a failure says what was left."""
    if not sys.platform.startswith("linux"):
        return Counter(descriptors=psutil.Process().num_fds())
    found: Counter[str] = Counter()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing's own
            found[re.sub(r"\d+", "", os.readlink(link))] += 1
    return found


async def test_nothing_is_left_of_any_request(
    raw_settings: dict[str, Any], stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    raw_settings["jobs"] |= {"result_ttl_s": 0.001, "progress_interval_s": 0.01, "state_interval_s": 0.01}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        for number in range(2):
            await everything(one, number)
        # the database's pool opens a connection for as many as read at the same time, and keeps it
        await asyncio.gather(*(one.http.get("/jobs") for _ in range(20)))
        before = in_use()
        for number in range(8):
            await everything(one, number)

        def grown() -> dict[str, int]:
            return {name: count for name, count in in_use().items() if count > before.get(name, 0)}

        with suppress(TimeoutError):
            await until(lambda: not grown())  # what writes the progress of all jobs ends soon after the last
        assert grown() == {}
        await one.maintenance.sweep()
        assert (await one.http.get("/jobs")).json()["jobs"] == []
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not [*temporary.rglob("*"), *(tmp_path / "images").rglob("*")]
