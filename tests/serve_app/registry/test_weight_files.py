"""Files of weights come and go: whole, checked, on record, and never half."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from deployments.engine.adapters.lora_folder import LoraFolder
from deployments.engine.conditioning.controlnet_files import ControlnetFolder
from deployments.engine.errors import ControlnetRefused, DarkroomError, InvalidRequest, LoraRefused
from serve_app.config.settings import Settings
from serve_app.errors import BodyTooLarge, StoreUnavailable, UnknownEntry
from serve_app.jobs.db.store import JobStore
from serve_app.registry import weight_files as weight_files_module
from serve_app.registry.entries import Author, EntryKind
from serve_app.registry.weight_files import WeightFile, WeightFiles
from tests.serve_app.conftest import catalogue
from tests.serve_app.lost_answers import Network

ALICE = Author("alice", "0123abcd")
KEY = "lora_unet_down_blocks_0_attentions_0_proj_in"


def lora(seed: int = 0, rank: int = 4) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    up = torch.randn(32, rank, generator=generator, dtype=torch.float32)
    return save({f"{KEY}.lora_up.weight": up, f"{KEY}.lora_down.weight": up.T.contiguous()})


def controlnet(*marks: str) -> bytes:
    return save({name: torch.zeros(4, 4, dtype=torch.float32) for name in ("input_hint_block.0.weight", *marks)})


def weight_files(folder: Path, store: JobStore, **registry: Any) -> WeightFiles:
    for name in ("loras", "controlnets"):
        (folder / name).mkdir(exist_ok=True)
    raw = catalogue()
    raw["models"] = {"demo-sd15": raw["models"]["demo-sd15"]}
    settings = Settings.model_validate({**raw, "registry": {"min_free_bytes": 0, **registry}})
    folders = {"loras": LoraFolder(f"{folder}/loras"), "controlnets": ControlnetFolder(f"{folder}/controlnets")}
    return WeightFiles(folders, settings, store.registry)


@pytest.fixture
def files(tmp_path: Path, store: JobStore) -> WeightFiles:
    return weight_files(tmp_path, store)


async def in_parts(content: bytes, size: int = 100) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def put(files: WeightFiles, name: str, content: bytes, kind: str = "loras", **options: Any) -> WeightFile:
    options = {"replaces": False, **options}
    return await files.upload(kind, name, len(content), in_parts(content), ALICE, **options)


def on_disk(folder: Path) -> dict[str, bytes]:
    """All files below, quarantine included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def lines(store: JobStore) -> list[tuple[str, bool, bool]]:
    """The log: of each change the file, and whether one was before and after."""
    found = await store.registry.changes(limit=99)
    assert {(change.kind, change.author) for change in found} <= {(EntryKind.FILE, ALICE)}
    return [
        (
            change.name,
            "sha256" in (change.before or {}),
            "sha256" in (change.after or {}),
        )
        for change in reversed(found)
    ]


async def test_a_file_is_put_into_its_folder_and_taken_out(files: WeightFiles, store: JobStore, tmp_path: Path) -> None:
    content = lora()
    uploaded = await put(files, "night", content)
    assert uploaded == WeightFile("night", len(content), hashlib.sha256(content).hexdigest())
    assert on_disk(tmp_path / "loras") == {"night.safetensors": content}
    assert await files.files() == {"loras": (uploaded,), "controlnets": ()}
    await files.remove("loras", "night", ALICE)
    assert on_disk(tmp_path / "loras") == {}
    assert await lines(store) == [("loras/night", False, True), ("loras/night", True, False)]
    with pytest.raises(UnknownEntry, match="no LoRA named 'night'"):
        await files.remove("loras", "night", ALICE)


async def test_another_process_sees_it_at_once(files: WeightFiles, other_store: JobStore, tmp_path: Path) -> None:
    elsewhere = weight_files(tmp_path, other_store)
    uploaded = await put(files, "night", lora())
    assert (await elsewhere.files())["loras"] == (uploaded,)
    await elsewhere.remove("loras", "night", ALICE)
    assert (await files.files())["loras"] == ()


async def test_the_same_file_again_changes_nothing_and_another_one_must_be_meant(
    files: WeightFiles, store: JobStore, tmp_path: Path
) -> None:
    first, second = lora(0), lora(1)
    await put(files, "night", first)
    await put(files, "night", first)
    with pytest.raises(LoraRefused, match="'night' is there already, with another content"):
        await put(files, "night", second)
    assert on_disk(tmp_path / "loras") == {"night.safetensors": first}
    await put(files, "night", second, replaces=True)
    assert on_disk(tmp_path / "loras") == {"night.safetensors": second}
    assert len(await lines(store)) == 2


async def test_files_that_somebody_put_there_count_as_any(files: WeightFiles, store: JobStore, tmp_path: Path) -> None:
    (tmp_path / "loras" / "people").mkdir()
    (tmp_path / "loras" / "people" / "alice.safetensors").write_bytes(lora(0))
    assert (await files.files())["loras"] == (WeightFile("alice", len(lora(0)), None),)
    await put(files, "alice", lora(0))
    with pytest.raises(LoraRefused, match="is there already"):
        await put(files, "alice", lora(1))
    await put(files, "alice", lora(1), replaces=True)
    assert on_disk(tmp_path / "loras") == {"people/alice.safetensors": lora(1)}
    (tmp_path / "loras" / "people" / "alice.safetensors").write_bytes(lora(2))
    [by_hand] = (await files.files())["loras"]
    assert by_hand.sha256 is None
    await files.remove("loras", "alice", ALICE)
    assert on_disk(tmp_path / "loras") == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04" + bytes(300), "night.safetensors: a pickle in spite of its name"),
        (b"\x80\x04\x95" + bytes(300), "night.safetensors: a pickle in spite of its name"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer"),
        (lora()[:-1], "cut short or damaged: its header declares"),
        (lora()[:40], "not a safetensors file, or cut short"),
        (lora() + b"\0", "cut short or damaged"),
        (b"", "not a safetensors file, or cut short"),
        (b"{}", "not a safetensors file, or cut short"),
        ((2).to_bytes(8, "little") + b"{}", "its header doesn't describe tensors"),
        (controlnet(), "LoRA 'night'"),
    ],
    ids=["zip", "pickle", "lfs", "short", "shorter", "longer", "empty", "tiny", "no tensors", "another kind"],
)
async def test_what_is_no_such_file_is_refused_with_its_reason(
    files: WeightFiles, store: JobStore, tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(LoraRefused, match=message) as refused:
        await put(files, "night", content)
    assert str(tmp_path) not in refused.value.message
    assert on_disk(tmp_path / "loras") == {}
    assert await lines(store) == []


async def test_a_file_is_refused_before_its_tensors_come(files: WeightFiles) -> None:
    content = controlnet()
    header = 8 + int.from_bytes(content[:8], "little")
    sent = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal sent
        async for part in in_parts(content, 8):
            sent += len(part)
            yield part

    with pytest.raises(LoraRefused):
        await files.upload("loras", "night", len(content), parts(), ALICE, replaces=False)
    assert header <= sent < header + 8 < len(content)


async def test_a_controlnet_is_for_a_model_that_is_here(files: WeightFiles, tmp_path: Path) -> None:
    await put(files, "edges", controlnet(), "controlnets")
    with pytest.raises(ControlnetRefused, match="is for sdxl models, of which there is none here"):
        await put(files, "xl", controlnet("label_emb.0.0.weight"), "controlnets")
    assert on_disk(tmp_path / "controlnets").keys() == {"edges.safetensors"}


@pytest.mark.parametrize("name", ["../night", "a/b", ".", "..", "", " night", "a:b", "x" * 129, "nul\0"])
async def test_a_name_is_no_path(files: WeightFiles, tmp_path: Path, name: str) -> None:
    with pytest.raises(LoraRefused, match="has a name that requests can't say"):
        await put(files, name, lora())
    assert on_disk(tmp_path / "loras") == {}


async def test_folders_that_take_no_files(files: WeightFiles, store: JobStore, tmp_path: Path) -> None:
    with pytest.raises(UnknownEntry, match="no folder 'models' that files can be put into; folders: loras"):
        await put(files, "night", lora(), "models")
    folder = tmp_path / "controlnets" / "edges"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for change in (put(files, "edges", controlnet(), "controlnets"), files.remove("controlnets", "edges", ALICE)):
        with pytest.raises(ControlnetRefused, match="is a folder, which can only be changed on the disk"):
            await change
    nothing = WeightFiles({"loras": LoraFolder(None)}, Settings.model_validate(catalogue()), store.registry)
    with pytest.raises(UnknownEntry, match="the settings name no folder of LoRAs"):
        await put(nothing, "night", lora())
    assert await nothing.files() == {"loras": ()}


async def test_size_and_disk_are_bounded(store: JobStore, tmp_path: Path) -> None:
    small = weight_files(tmp_path, store, max_upload_bytes=len(lora()) - 1)
    with pytest.raises(BodyTooLarge, match=r"registry\.max_upload_bytes"):
        await put(small, "night", lora())
    full = weight_files(tmp_path, store, min_free_bytes=1 << 50)
    with pytest.raises(StoreUnavailable, match="has no room"):
        await put(full, "night", lora())
    assert on_disk(tmp_path / "loras") == {}
    await put(weight_files(tmp_path, store, max_upload_bytes=len(lora())), "night", lora())


async def test_an_upload_that_breaks_off_leaves_nothing(files: WeightFiles, store: JobStore, tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield lora()[:-10]
        raise ConnectionResetError

    async def endless() -> AsyncIterator[bytes]:
        yield lora()[:-10]
        begun.set()
        await asyncio.Event().wait()

    begun = asyncio.Event()
    with pytest.raises(StoreUnavailable):
        await files.upload("loras", "night", len(lora()), broken(), ALICE, replaces=False)
    uploading = asyncio.create_task(files.upload("loras", "night", len(lora()), endless(), ALICE, replaces=False))
    await begun.wait()
    uploading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await uploading
    assert on_disk(tmp_path / "loras") == {}
    assert await lines(store) == []
    with pytest.raises(InvalidRequest, match="bytes came, and Content-Length says"):
        await files.upload("loras", "night", len(lora()), in_parts(lora()[:-9]), ALICE, replaces=False)


async def test_another_router_leaves_an_upload_alone(files: WeightFiles, other_store: JobStore, tmp_path: Path) -> None:
    elsewhere = weight_files(tmp_path, other_store)

    async def parts() -> AsyncIterator[bytes]:
        yield lora()[:-10]
        await elsewhere.settle()
        await put(elsewhere, "day", lora(1))
        yield lora()[-10:]

    await files.upload("loras", "night", len(lora()), parts(), ALICE, replaces=False)
    assert on_disk(tmp_path / "loras") == {"day.safetensors": lora(1), "night.safetensors": lora()}


async def test_of_two_at_the_same_time_one_counts(
    files: WeightFiles, store: JobStore, other_store: JobStore, tmp_path: Path
) -> None:
    elsewhere = weight_files(tmp_path, other_store)
    contents = [lora(seed) for seed in range(6)]
    uploads = [put(one, "night", content) for one, content in zip([files, elsewhere] * 3, contents, strict=True)]
    ended = await asyncio.gather(*uploads, return_exceptions=True)
    [winner] = [one for one in ended if isinstance(one, WeightFile)]
    assert all(isinstance(one, (WeightFile, DarkroomError)) for one in ended)
    [content] = on_disk(tmp_path / "loras").values()
    assert hashlib.sha256(content).hexdigest() == winner.sha256
    assert len(await lines(store)) == 1


def test_an_upload_may_end_while_another_router_clears_up(tmp_path: Path) -> None:
    upload = weight_files_module._Upload(tmp_path, "night", 10)
    upload.path.rename(tmp_path / "night.safetensors")
    weight_files_module._clear(tmp_path / ".quarantine")  # finds its folder empty, and deletes it
    upload.close(kept=True)
    assert list((tmp_path / ".quarantine").iterdir()) == []


async def test_a_package_s_folder_isn_t_changed(store: JobStore) -> None:
    folder = LoraFolder("package:demo_models/demo-loras")
    assert folder.folder is not None
    before = sorted(folder.folder.rglob("*"))
    files = WeightFiles({"loras": folder}, Settings.model_validate(catalogue()), store.registry)
    said = r"loras\.folder lies in a Python package, whose files aren't changed: name a folder of your own there"
    with pytest.raises(InvalidRequest, match=said):
        await put(files, "night", lora())
    with pytest.raises(InvalidRequest, match=said):
        await files.remove("loras", folder.names()[0], ALICE)
    assert sorted(folder.folder.rglob("*")) == before
    assert [file.name for file in (await files.files())["loras"]] == list(folder.names())


async def test_an_upload_whose_answer_is_lost_is_carried_out(lossy_url: str, network: Network, tmp_path: Path) -> None:
    """The database has the file's entry, and the uploader doesn't know it: the file is there after the next look."""
    store = JobStore(lossy_url)
    await store.open()
    files = weight_files(tmp_path, store)
    network.loses = b"INSERT INTO registry_entries"
    with pytest.raises(StoreUnavailable, match="the job database"):
        await put(files, "night", lora())
    assert network.lost.is_set()
    await files.settle()
    assert on_disk(tmp_path / "loras") == {"night.safetensors": lora()}
    [listed] = (await files.files())["loras"]
    assert listed.sha256 == hashlib.sha256(lora()).hexdigest()
    await store.close()
