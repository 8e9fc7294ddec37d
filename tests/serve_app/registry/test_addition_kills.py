"""kill -9 while models are added and removed: whoever comes next brings each addition and removal to its end."""

import asyncio
import time
from pathlib import Path

import pytest

from serve_app.jobs.db.store import JobStore
from serve_app.jobs.states import JobState
from serve_app.registry import added_models as module
from serve_app.registry.entries import AdditionState, EntryKind
from tests.ldm_export import write_hollow
from tests.serve_app.registry.adder_process import OPS, added_models
from tests.serve_app.registry.killed_process import killed_in_mid_change

# each starts a process anew
KILLS = 2

ADDER = "tests.serve_app.registry.adder_process"
ENDS = {AdditionState.READY, AdditionState.FAILED}


async def ended_jobs(store: JobStore) -> None:
    """What a router does with jobs whose owner is gone."""
    for job in await store.queued():
        await store.cancel(job.id)
    await store.settle_abandoned(max_attempts=1)


async def test_killed_at_any_moment(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    write_hollow(folder / "model.safetensors", "sd15")
    monkeypatch.setattr(module, "_JOB_S", 0.05)
    store = JobStore(database_url)
    await store.open()
    for _ in range(KILLS):
        await killed_in_mid_change(ADDER, str(folder), database_url, store=store, changes=12)
        models, live = await added_models(folder, store)
        until = time.monotonic() + 30
        while {content["state"] for content in live.entries.checkpoints.values()} - ENDS:
            assert time.monotonic() < until, live.entries.checkpoints
            await ended_jobs(store)
            await models.settle()
            await asyncio.sleep(0.01)
        assert not live.problems
        for name, content in live.entries.checkpoints.items():
            assert live.settings.models[name].serves is (content["state"] == AdditionState.READY)
            if content["state"] == AdditionState.READY:
                assert (await store.get(content["job"])).state is JobState.COMPLETE
        assert await store.unfinished_by_model() == {}
        # the log tells of each change what was before it, and ends with what there is
        log = [one for one in reversed(await store.registry.changes(limit=100_000)) if one.kind == EntryKind.CHECKPOINT]
        present: dict[str, object] = {}
        for change in log:
            assert change.before == present.get(change.name)
            present[change.name] = change.after
        assert {name: of for name, of in present.items() if of is not None} == dict(live.entries.checkpoints)
    for name in live.entries.checkpoints:
        await models.remove(name, OPS)
    while live.entries.checkpoints:
        await models.settle()
        await asyncio.sleep(0.01)
    assert set(live.settings.models) == set(live.base.models)
    await store.close()
