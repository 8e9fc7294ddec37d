"""Files of tenants: bounded, one's own, and kept while a batch reads them."""

from datetime import timedelta

import pytest

from deployments.engine.errors import InvalidRequest
from serve_app.batches.batch import FilePurpose, StoredFile
from serve_app.errors import TooManyFiles, UnknownFile
from serve_app.jobs.db.store import JobStore
from tests.serve_app.clock import Clock


async def add(
    store: JobStore,
    clock: Clock,
    *,
    tenant: str = "a",
    purpose: FilePurpose = "batch",
    size: int = 10,
    ttl_s: float | None = None,
    max_files: int = 9,
    max_bytes: int = 1000,
) -> StoredFile:
    expires_at = None if ttl_s is None else clock.now + timedelta(seconds=ttl_s)
    file = StoredFile(store.new_id(), tenant, "ä.jsonl", purpose, size, clock.now, expires_at)
    await store.files.add(file, max_files=max_files, max_bytes=max_bytes)
    clock.forward(1)
    return file


async def read_by_a_batch(store: JobStore, file: StoredFile) -> None:
    await store.batches.create(
        store.new_id(),
        tenant=file.tenant,
        key_id=None,
        endpoint="/v1/images/generations",
        input_file=file.id,
        options={},
        window_s=100,
        max_unfinished=9,
    )


async def test_a_file_reads_back_and_is_its_tenant_s(store: JobStore, clock: Clock) -> None:
    file = await add(store, clock, size=3 << 32, max_bytes=1 << 40)
    assert await store.files.get(file.id, tenant="a") == await store.files.get(file.id, tenant=None) == file
    for file_id, tenant in ((file.id, "b"), ("0" * 32, "a")):
        with pytest.raises(UnknownFile):
            await store.files.get(file_id, tenant=tenant)
        with pytest.raises(UnknownFile):
            await store.files.delete(file_id, tenant=tenant)
    await store.files.delete(file.id, tenant="a")
    assert await store.files.known([file.id]) == frozenset()


async def test_number_and_bytes_of_uploads_are_bounded(store: JobStore, clock: Clock) -> None:
    for purpose in ("batch", "vision", "batch_output", "matrix"):
        await add(store, clock, purpose=purpose)  # the last two count for nobody
    await add(store, clock, tenant="b", max_files=2)
    with pytest.raises(TooManyFiles, match="2 files are uploaded, 2 are allowed"):
        await add(store, clock, max_files=2)
    await add(store, clock, size=980)
    with pytest.raises(TooManyFiles, match="1000 bytes of files are uploaded, 1000 are allowed"):
        await store.files.check("a", max_files=9, max_bytes=1000)


async def test_pages_in_both_orders(store: JobStore, clock: Clock) -> None:
    files = [await add(store, clock, purpose=purpose) for purpose in ("batch", "vision", "batch", "matrix")]
    await add(store, clock, tenant="b")
    seen: dict[str, tuple[FilePurpose, ...]] = {"own": ("batch", "vision")}
    assert await store.files.page(tenant="a", purposes=seen["own"], limit=2) == (files[2], files[1])
    assert await store.files.page(tenant="a", purposes=seen["own"], limit=2, after=files[1].id) == (files[0],)
    oldest = await store.files.page(tenant="a", purposes=("batch",), limit=9, after=files[0].id, oldest_first=True)
    assert oldest == (files[2],)
    assert len(await store.files.page(tenant=None, purposes=("batch",), limit=9)) == 3
    assert await store.files.page(tenant="a", purposes=(), limit=9) == ()


async def test_the_input_of_an_unfinished_batch_stays(store: JobStore, clock: Clock) -> None:
    file, other, kept = [await add(store, clock, ttl_s=ttl_s) for ttl_s in (5, 5, None)]
    await read_by_a_batch(store, file)
    with pytest.raises(InvalidRequest, match="input of a batch that hasn't ended"):
        await store.files.delete(file.id, tenant="a")
    clock.forward(100)
    assert await store.files.expire() == (other.id,)
    assert await store.files.known([file.id, other.id, kept.id]) == {file.id, kept.id}
    [batch] = await store.batches.claim(owner="me", lease_s=1, limit=1)
    await store.batches.fail(batch.id, batch.fence, [{"code": "x", "message": "x"}])
    assert await store.files.expire() == (file.id,)
    assert await store.files.expire() == ()
