"""What is over is deleted, what isn't stays; any number of sweepers may be at it."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path

import pytest

from serve_app.batches.batch import BatchState, FilePurpose, LinePlace, StoredFile
from serve_app.errors import StoreUnavailable, UnknownBatch, UnknownJob
from serve_app.image_store.store import ImageName, ImageStore
from serve_app.jobs.db.store import JobStore
from serve_app.jobs.job import Job, created_at
from serve_app.jobs.retention import Retention
from tests.serve_app.clock import Clock

TTL_S = 100.0


@pytest.fixture
async def images(tmp_path: Path) -> ImageStore:
    images = ImageStore(str(tmp_path / "images"))
    await images.open()
    return images


@pytest.fixture
def retention(store: JobStore, images: ImageStore, clock: Clock) -> Retention:
    return Retention(store, images, TTL_S, clock)


async def drawn(store: JobStore, images: ImageStore, *, ends: bool = True) -> Job:
    """A job in its second attempt, with files of both, and what a crash left of a third."""
    job = (await store.create({}, max_queued=1000))[0]
    first = await store.claim(job.id, owner="dead", lease_s=-1, max_attempts=9)
    second = await store.claim(job.id, owner="me", lease_s=10_000, max_attempts=9)
    assert first is not None
    assert second is not None
    names = [ImageName(job.id, fence, 0, "png") for fence in (first.fence, second.fence)]
    for name in names:
        await images.write(name, b"x")
    if not ends:
        return second
    return await store.complete(job.id, second.fence, {"images": [{"name": str(names[1])}, {"name": None}]})


async def files(images: ImageStore, job: Job) -> frozenset[str]:
    return (await images.files_by_job()).get(job.id, frozenset())


async def test_a_folder_that_no_clock_has_named_is_left_alone(
    retention: Retention, images: ImageStore, tmp_path: Path, clock: Clock
) -> None:
    foreign = tmp_path / "images" / ("f" * 32) / "1-0.png"
    foreign.parent.mkdir()
    foreign.write_bytes(b"x")
    clock.forward(10 * TTL_S)
    assert await retention.delete_orphans() == 0
    assert foreign.exists()


async def test_ended_jobs_expire_with_their_images_and_no_others(
    retention: Retention, store: JobStore, images: ImageStore, clock: Clock
) -> None:
    ended, running = await drawn(store, images), await drawn(store, images, ends=False)
    waiting = (await store.create({}, max_queued=1000))[0]
    clock.forward(TTL_S / 2)
    later = await drawn(store, images)
    clock.forward(TTL_S / 2 + 1)
    await retention.expire()
    with pytest.raises(UnknownJob):
        await store.get(ended.id)
    assert await files(images, ended) == frozenset()
    assert {job.id for job in (await store.page(tenant=None, limit=9)).jobs} == {running.id, waiting.id, later.id}
    assert await files(images, running) == {"1-0.png", "2-0.png"}
    assert await files(images, later) == {"1-0.png", "2-0.png"}


async def test_many_sweepers_at_once_delete_each_thing_once_and_raise_nothing(
    store: JobStore, other_store: JobStore, images: ImageStore, clock: Clock
) -> None:
    for _ in range(12):
        await drawn(store, images)
    running = await drawn(store, images, ends=False)
    clock.forward(TTL_S + 1)
    sweepers = [Retention(one, images, TTL_S, clock) for one in (store, other_store) * 2]
    await asyncio.gather(*(sweeper.expire() for sweeper in sweepers), *(one.delete_orphans() for one in sweepers))
    assert [job.id for job in (await store.page(tenant=None, limit=99)).jobs] == [running.id]
    assert set(await images.files_by_job()) == {running.id}


async def test_files_of_stale_attempts_go_when_the_job_has_ended(
    retention: Retention, store: JobStore, images: ImageStore, tmp_path: Path
) -> None:
    ended, running = await drawn(store, images), await drawn(store, images, ends=False)
    (tmp_path / "images" / ended.id / ".0123456789abcdef.part").touch()
    (tmp_path / "images" / running.id / ".0123456789abcdef.part").touch()
    failed = await drawn(store, images, ends=False)
    await store.fail(failed.id, failed.fence, code="x", message="x")
    assert await retention.delete_orphans() == 4
    assert await files(images, ended) == {"2-0.png"}
    assert await files(images, failed) == frozenset()
    assert len(await files(images, running)) == 3
    assert await retention.delete_orphans() == 0


async def test_files_of_no_job_are_kept_as_long_as_its_images_would_have_been(
    retention: Retention, store: JobStore, images: ImageStore, clock: Clock
) -> None:
    job = await drawn(store, images)
    assert abs((created_at(job.id) - clock.now).total_seconds()) < 0.001
    await store.delete(job.id)
    clock.forward(TTL_S - 1)
    assert await retention.delete_orphans() == 0
    clock.forward(2)
    assert await retention.delete_orphans() == 2
    assert await images.files_by_job() == {}


async def stored(store: JobStore, images: ImageStore, clock: Clock, ttl_s: float | None) -> StoredFile:
    async def parts() -> AsyncGenerator[bytes, None]:
        yield b"x"

    expires_at = None if ttl_s is None else clock.now + timedelta(seconds=ttl_s)
    purpose: FilePurpose = "matrix" if ttl_s is None else "batch"
    file = StoredFile(store.new_id(), "a", "x", purpose, 1, clock.now, expires_at)
    await images.write_file(file.id, parts())
    await store.files.add(file, max_files=9, max_bytes=99)
    return file


async def test_files_and_batches_expire_with_what_is_theirs(
    retention: Retention, store: JobStore, images: ImageStore, clock: Clock
) -> None:
    input_file, other = await stored(store, images, clock, None), await stored(store, images, clock, 3 * TTL_S)
    await store.batches.create(
        store.new_id(),
        tenant="a",
        key_id=None,
        endpoint="/batches",
        input_file=input_file.id,
        options={},
        window_s=9,
        max_unfinished=9,
    )
    [batch] = await store.batches.claim(owner="me", lease_s=9, limit=9)
    await store.batches.begin(batch.id, batch.fence, 1)
    place = LinePlace(batch.id, batch.fence, 0, 9, None)
    job, _ = await store.create({}, max_queued=9, tenant="a", line=place)
    claimed = await store.claim(job.id, owner="me", lease_s=9, max_attempts=9)
    assert claimed is not None
    await store.complete(job.id, claimed.fence, {"images": []})
    clock.forward(2 * TTL_S)
    await retention.expire()
    assert await retention.delete_orphans() == 0
    assert set(await images.files_by_job()) == {input_file.id, other.id}
    assert (await store.get(job.id)).id == job.id
    await store.batches.close(batch.id, batch.fence, BatchState.FINALIZING)
    await store.batches.end(batch.id, batch.fence, output=None, errors=None)
    clock.forward(TTL_S + 1)
    await retention.expire()
    assert await images.files_by_job() == {}
    for gone, error in ((store.get(job.id), UnknownJob), (store.batches.get(batch.id), UnknownBatch)):
        with pytest.raises(error):
            await gone


async def test_what_is_kept_for_ever_is(store: JobStore, images: ImageStore, clock: Clock) -> None:
    ended, unknown = await drawn(store, images), await drawn(store, images)
    await store.delete(unknown.id)
    clock.forward(10**9)
    keeps_all = Retention(store, images, 0, clock)
    await keeps_all.expire()
    assert await keeps_all.delete_orphans() == 1  # the stale attempt's of the ended job
    assert await files(images, ended) == {"2-0.png"}
    assert len(await files(images, unknown)) == 2


async def test_a_job_stays_while_its_images_cannot_be_deleted(
    retention: Retention, store: JobStore, images: ImageStore, clock: Clock, tmp_path: Path
) -> None:
    job = await drawn(store, images)
    clock.forward(TTL_S + 1)
    (tmp_path / "images").rename(tmp_path / "away")
    (tmp_path / "images").touch()  # no folder at all
    with pytest.raises(StoreUnavailable):
        await retention.expire()
    assert (await store.get(job.id)).id == job.id
    (tmp_path / "images").unlink()
    (tmp_path / "away").rename(tmp_path / "images")
    await retention.expire()
    assert await images.files_by_job() == {}
