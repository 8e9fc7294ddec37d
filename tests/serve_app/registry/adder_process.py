"""A process that adds and removes models without end, which a test kills: their folder, and its database."""

import asyncio
import random
import sys
from functools import partial
from pathlib import Path

from deployments.engine.adapters.lora_folder import LoraFolder
from serve_app.config.settings import Settings
from serve_app.errors import UnknownJob
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.job import Job
from serve_app.registry.added_models import AddedModels
from serve_app.registry.entries import AdditionState, Author
from serve_app.registry.live_settings import LiveSettings
from tests.serve_app.conftest import catalogue

NAMES = ("portraits", "landscapes", "maps")
OPS = Author("ops", None)
LEASE_S = 0.05


def settings_of(folder: Path) -> Settings:
    registry = {"poll_s": 0.001, "folders": [str(folder)]}
    safety = {"classifier": "package:demo_models/demo-nsfw"}
    return Settings.model_validate({**catalogue(), "registry": registry, "safety": safety})


async def forget(_stage: str, _added: object) -> None:
    """There are no stages."""


async def added_models(folder: Path, store: JobStore) -> tuple[AddedModels, LiveSettings]:
    settings = settings_of(folder)
    live = LiveSettings(settings, store.registry)
    await live.look()
    return AddedModels(settings, live=live, store=store, loras=LoraFolder(None), retain=forget), live


async def draw(store: JobStore, name: str, job_id: str) -> Job:
    """In place of a router: the job ends soon, one way or the other."""
    await store.create({"model": name}, job_id=job_id, max_queued=9)
    if random.random() < 0.3:
        return await store.cancel(job_id)
    claimed = await store.claim(job_id, owner="adder", lease_s=LEASE_S, max_attempts=1)
    assert claimed is not None
    return await store.complete(job_id, claimed.fence, {})


async def main() -> None:
    folder, url = Path(sys.argv[1]), sys.argv[2]
    store = JobStore(url)
    await store.open()
    models, live = await added_models(folder, store)
    sys.stdout.write("begun\n")
    sys.stdout.flush()
    while True:
        name = random.choice(NAMES)
        content = live.entries.checkpoints.get(name)
        if content is None or content["state"] == AdditionState.FAILED:
            await models.add(name, {"source": "model.safetensors"}, OPS, partial(draw, store))
        elif content["state"] == AdditionState.READY or random.random() < 0.1:
            job_id = await models.remove(name, OPS)
            try:
                if job_id is not None:
                    await store.cancel(job_id)
            except UnknownJob:
                pass  # the process before this one was killed before it wrote it
        await models.settle()


if __name__ == "__main__":
    asyncio.run(main())
