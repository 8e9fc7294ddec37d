"""kill -9 while files are uploaded, replaced and removed: what is on record is in the folder, and nothing else."""

import hashlib
from pathlib import Path

import pytest

from serve_app.jobs.db.store import JobStore
from serve_app.registry.entries import EntryKind
from tests.serve_app.registry.killed_process import killed_in_mid_change
from tests.serve_app.registry.test_weight_files import ALICE, lora, on_disk, put, weight_files

# each starts a process anew
KILLS = 2

UPLOADER = "tests.serve_app.registry.uploader_process"


class Killed(BaseException):
    """What ends a process."""


async def on_record(store: JobStore) -> dict[str, str]:
    """The hash of each file by the log's last line about it."""
    last = {change.name: change.after or {} for change in reversed(await store.registry.changes(limit=100_000))}
    return {f"{key.removeprefix('loras/')}.safetensors": one["sha256"] for key, one in last.items() if "sha256" in one}


async def test_killed_at_any_moment(store: JobStore, database_url: str, tmp_path: Path) -> None:
    for _ in range(KILLS):
        await killed_in_mid_change(UPLOADER, str(tmp_path), database_url, store=store, changes=3)
        await weight_files(tmp_path, store).settle()
        found = {name: hashlib.sha256(content).hexdigest() for name, content in on_disk(tmp_path / "loras").items()}
        assert found == await on_record(store)
        _, entries = await store.registry.load()
        assert not any(content.get("removed") for content in entries.files.values())
    await put(weight_files(tmp_path, store), "last", lora())


@pytest.mark.parametrize("removes", [False, True], ids=["upload", "removal"])
async def test_what_is_on_record_is_carried_out_by_the_next(
    store: JobStore, other_store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removes: bool
) -> None:
    """A process ends between the record and the file."""
    dying = weight_files(tmp_path, store)
    if removes:
        await put(dying, "night", lora())
    before = on_disk(tmp_path / "loras")

    async def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(store.registry, "settle", killed)
    monkeypatch.setattr("serve_app.registry.weight_files._Upload.close", lambda upload, **_: upload._file.close())
    with pytest.raises(Killed):
        await (dying.remove("loras", "night", ALICE) if removes else put(dying, "night", lora()))
    assert ("night.safetensors" in on_disk(tmp_path / "loras")) is ("night.safetensors" in before) is removes
    await weight_files(tmp_path, other_store).settle()
    assert on_disk(tmp_path / "loras") == ({} if removes else {"night.safetensors": lora()})
    assert len(await store.registry.changes(limit=9)) == (2 if removes else 1)


async def test_a_file_that_was_put_there_after_a_removal_stays(store: JobStore, tmp_path: Path) -> None:
    files = weight_files(tmp_path, store)
    await put(files, "night", lora())
    old = {"removed": True, "bytes": len(lora()), "written": 1}
    await store.registry.change(EntryKind.FILE, "loras/night", lambda _: old, ALICE)
    await files.settle()
    assert on_disk(tmp_path / "loras") == {"night.safetensors": lora()}
    assert (await store.registry.load())[1].files == {}
