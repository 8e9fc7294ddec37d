import asyncio
import errno
import itertools
import os
import random
import resource
import shutil
import string
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from serve_app.errors import BodyTooLarge, StoreUnavailable, UnknownFile, UnknownImage
from serve_app.image_store.store import ImageName, ImageStore, _path

JOB_ID = "0123456789abcdef" * 2
NAME = ImageName(JOB_ID, 1, 0, "png")


@pytest.fixture(params=["folder", "file-url", "memory", "s3"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> ImageStore:
    folder = tmp_path / "images"
    if request.param == "s3":
        url: str = request.getfixturevalue("bucket_url")
    else:
        url = {"folder": str(folder), "file-url": f"file://{folder}", "memory": "memory:///images"}[request.param]
    store = ImageStore(url)
    await store.open()
    return store


@pytest.fixture
async def folder_store(tmp_path: Path) -> ImageStore:
    store = ImageStore(str(tmp_path / "images"))
    await store.open()
    return store


async def test_what_is_written_is_read(store: ImageStore) -> None:
    await store.write(NAME, b"first")
    assert await store.read(NAME) == b"first"
    await store.write(NAME, b"second")
    assert await store.read(ImageName.parse(str(NAME))) == b"second"


async def test_an_image_that_is_not_there(store: ImageStore) -> None:
    with pytest.raises(UnknownImage):
        await store.read(NAME)
    assert not await store.delete_job(JOB_ID)
    await store.delete_files(JOB_ID, {NAME.file})


async def test_deleting_one_and_all_of_a_job(store: ImageStore) -> None:
    names = [ImageName(JOB_ID, fence, index, "webp") for fence in (1, 2) for index in (0, 1)]
    other = ImageName("f" * 32, 1, 0, "jpeg")
    for name in [*names, other]:
        await store.write(name, str(name).encode())
    assert await store.files_by_job() == {
        JOB_ID: {"1-0.webp", "1-1.webp", "2-0.webp", "2-1.webp"},
        "f" * 32: {"1-0.jpeg"},
    }
    await store.delete_files(JOB_ID, {names[0].file})
    with pytest.raises(UnknownImage):
        await store.read(names[0])
    assert await store.read(names[1]) == str(names[1]).encode()
    assert await store.delete_job(JOB_ID)
    for name in names:
        with pytest.raises(UnknownImage):
            await store.read(name)
    assert await store.read(other) == str(other).encode()
    assert set(await store.files_by_job()) == {"f" * 32}


async def parts(*sizes: int, end: Exception | None = None) -> AsyncGenerator[bytes, None]:
    for number, size in enumerate(sizes):
        yield bytes([number]) * size
    if end is not None:
        raise end


# a bucket takes parts of 5 MiB at least
@pytest.mark.parametrize("sizes", [(), (1,), (3, 0, 4), (6 << 20, 6 << 20, 5)], ids=str)
async def test_a_file_is_written_and_read_in_parts(store: ImageStore, sizes: tuple[int, ...]) -> None:
    expected = b"".join([part async for part in parts(*sizes)])
    assert await store.write_file(JOB_ID, parts(*sizes)) == len(expected)
    read = [part async for part in store.read_file(JOB_ID)]
    assert b"".join(read) == expected
    if len(expected) > 6:
        assert await store.read_part(JOB_ID, len(expected) - 6, 4) == expected[-6:-2]
    assert set(await store.files_by_job()) == {JOB_ID}
    await store.delete_job(JOB_ID)
    for missing in (anext(store.read_file(JOB_ID)), store.read_part(JOB_ID, 0, 1)):
        with pytest.raises(UnknownFile):
            await missing


async def test_a_file_is_never_in_memory_as_a_whole(folder_store: ImageStore) -> None:
    await folder_store.write_file(JOB_ID, parts(6 << 20))
    assert [len(part) async for part in folder_store.read_file(JOB_ID)] == [1 << 20] * 6


async def test_a_file_that_breaks_off_is_none(store: ImageStore) -> None:
    for sizes in ((7,), (6 << 20, 6 << 20)):
        with pytest.raises(BodyTooLarge, match="too long"):
            await store.write_file(JOB_ID, parts(*sizes, end=BodyTooLarge("too long")))
        assert await store.files_by_job() == {}


async def test_deleting_at_once_is_no_error(store: ImageStore) -> None:
    await store.write(NAME, b"x")
    await asyncio.gather(*(store.delete_job(JOB_ID) for _ in range(8)))
    assert await store.files_by_job() == {}


async def test_attempts_do_not_overwrite_each_other(store: ImageStore) -> None:
    await store.write(ImageName(JOB_ID, 2, 0, "png"), b"the owner's")
    await store.write(ImageName(JOB_ID, 1, 0, "png"), b"a stale one's")
    assert await store.read(ImageName(JOB_ID, 2, 0, "png")) == b"the owner's"


def test_names_and_content_types() -> None:
    assert str(NAME) == f"{JOB_ID}-1-0.png"
    assert ImageName.parse(f"{JOB_ID}-12-3.webp") == ImageName(JOB_ID, 12, 3, "webp")
    assert [ImageName(JOB_ID, 1, 0, extension).content_type for extension in ("png", "jpeg", "webp")] == [
        "image/png",
        "image/jpeg",
        "image/webp",
    ]


def traversals() -> Iterator[str]:
    """More than ten thousand strings that aren't names but would like to be paths."""
    good = str(NAME)
    climbs = [
        "..",
        "../",
        "..\\",
        "....//",
        "..;/",
        "%2e%2e/",
        "%252e%252e%252f",
        "..%c0%af",
        "\uff0e\uff0e\uff0f",
        "/",
        "//",
        "\\\\",
        "./",
        "~/",
    ]
    targets = [
        "etc/passwd",
        "jobs.db",
        "data/jobs.db",
        "proc/self/environ",
        good,
        f"{JOB_ID}/1-0.png",
        "C:\\boot.ini",
        "",
    ]
    wraps = [
        "{}",
        "/{}",
        "{}\0",
        "{}\0.png",
        "{}.png",
        "{}\n",
        "file://{}",
        f"{JOB_ID}-{{}}",
        f"{JOB_ID}-1-0{{}}",
        f"{{}}{good}",
    ]
    for climb, depth, target, wrap in itertools.product(climbs, range(1, 6), targets, wraps):
        text = wrap.format(climb * depth + target)
        yield text
        yield quote(text, safe="")
    draw = random.Random(14)
    alphabet = string.printable + "\uff0e\uff0f\uff3c\u0660\uff10"
    for _ in range(2000):
        place = draw.randrange(len(good) + 1)
        yield good[:place] + draw.choice(alphabet) + good[place:]
        place = draw.randrange(len(good))
        yield good[:place] + draw.choice("./\\%\0 \n\t:;~*?\u0660\uff10ABCDEF") + good[place + 1 :]
    yield from (
        "",
        ".",
        "..",
        "-",
        f"{JOB_ID}-01-0.png",
        f"{JOB_ID}-1-00.png",
        f"{JOB_ID}-1-0.PNG",
        f"{JOB_ID}-1-0.svg",
    )
    yield from (f"{JOB_ID}-+1-0.png", f"{JOB_ID}--1-0.png", f"{JOB_ID}-1-0.png/", f"{JOB_ID.upper()}-1-0.png", good * 2)


def test_no_string_reaches_outside_the_folder(tmp_path: Path) -> None:
    """Whatever passes as a name is one that the store itself could have given, and lies in the job's folder."""
    root = os.path.realpath(tmp_path / "images")
    refused = 0
    corpus = set(traversals())
    assert len(corpus) > 10_000
    for text in corpus:
        try:
            name = ImageName.parse(text)
        except UnknownImage:
            refused += 1
            continue
        assert str(name) == text
        assert os.path.realpath(tmp_path / "images" / _path(name)).startswith(f"{root}/{name.job_id}/")
    assert refused > 0.97 * len(corpus)  # a digit put into a number makes another good name


@pytest.mark.parametrize("job_id", ["..", "../..", "", ".", JOB_ID.upper(), f"{JOB_ID}/..", "*", JOB_ID + "\0"])
async def test_a_name_made_by_hand_is_checked_too(folder_store: ImageStore, tmp_path: Path, job_id: str) -> None:
    (tmp_path / "precious").touch()
    name = ImageName(job_id, 1, 0, "png")
    with pytest.raises(UnknownImage):
        await folder_store.write(name, b"x")
    with pytest.raises(UnknownImage):
        await folder_store.read(name)
    assert not await folder_store.delete_job(job_id)
    assert sorted(os.listdir(tmp_path)) == ["images", "precious"]


async def test_a_disk_that_takes_no_more_leaves_nothing_half_written(folder_store: ImageStore, tmp_path: Path) -> None:
    await folder_store.write(NAME, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # the kernel refuses what goes beyond, as a full disk does
    try:
        with pytest.raises(StoreUnavailable) as caught:
            await folder_store.write(NAME, b"x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(caught.value.__cause__, OSError)
    assert str(tmp_path) not in str(caught.value)
    assert await folder_store.read(NAME) == b"old"
    assert os.listdir(tmp_path / "images" / JOB_ID) == ["1-0.png"]


async def test_a_folder_that_is_gone_is_an_outage_not_a_missing_image(folder_store: ImageStore, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(StoreUnavailable):
        await folder_store.read(NAME)
    with pytest.raises(StoreUnavailable):
        await folder_store.write(NAME, b"x")
    assert not (tmp_path / "images").exists()


async def test_a_folder_that_cannot_be_made_is_an_outage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable):
        await ImageStore(str(tmp_path / "file" / "images")).open()


async def test_readers_see_an_image_whole_or_not_at_all(folder_store: ImageStore) -> None:
    contents = [bytes([value]) * 200_000 for value in range(8)]
    await folder_store.write(NAME, contents[0])

    async def read() -> bytes:
        return await folder_store.read(NAME)

    writes = [folder_store.write(NAME, content) for content in contents]
    answers = await asyncio.gather(*writes, *(read() for _ in range(40)))
    assert all(answer in contents for answer in answers[len(writes) :])


async def test_a_disk_with_too_little_room_takes_no_images(tmp_path: Path) -> None:
    store = ImageStore(str(tmp_path / "images"), min_free_bytes=2**62)
    await store.open()
    with pytest.raises(StoreUnavailable) as caught:
        await store.check()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC


async def test_whoever_asks_meanwhile_waits_for_the_same_look(
    folder_store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, looks = folder_store._place.check, 0

    async def counted() -> None:
        nonlocal looks
        looks += 1
        await look()

    monkeypatch.setattr(folder_store._place, "check", counted)
    (tmp_path / "images").rename(tmp_path / "away")
    impatient = asyncio.create_task(folder_store.check())
    asked = [asyncio.create_task(folder_store.check()) for _ in range(10)]
    await asyncio.sleep(0)
    impatient.cancel()
    told = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(one, StoreUnavailable) for one in told)
    assert (impatient.cancelled(), looks) == (True, 1)
    (tmp_path / "away").rename(tmp_path / "images")
    await folder_store.check()


async def test_a_store_is_looked_at_again_after_it_failed(folder_store: ImageStore, tmp_path: Path) -> None:
    await folder_store.check()
    (tmp_path / "images").rename(tmp_path / "away")
    await folder_store.check()  # a look a moment ago is good enough
    with pytest.raises(StoreUnavailable):
        await folder_store.write(NAME, b"x")
    with pytest.raises(StoreUnavailable):
        await folder_store.check()
    (tmp_path / "away").rename(tmp_path / "images")
    await folder_store.check()
