"""The image store: finished images by generated names, and files, in a folder or in a bucket of an object store.

A name is made of the job's id, the fence of the attempt that wrote it and the image's index, and nothing else
is ever a name: whatever doesn't match NAME exactly is an unknown image, before any path is made of it. An
attempt that lost its lease writes beside the one that holds it, never over it; only the names that the job's
result mentions count. What a job begins with lies beside its images, under no such name.
"""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from obstore.exceptions import BaseError

from deployments.engine.errors import DarkroomError
from serve_app.errors import NotFound, StoreUnavailable, UnknownFile, UnknownImage
from serve_app.image_store.bucket import ImageBucket
from serve_app.image_store.local_folder import ImageFolder
from serve_app.jobs.job import is_job_id
from serve_app.observability.logs import get_logger

log = get_logger(__name__)

Extension = Literal["png", "jpeg", "webp"]

CONTENT_TYPES: dict[str, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

# how long a store that took something counts as one that takes images
_CHECKED_S = 5.0

# what a job begins with and what steers it, in its folder: no names of ours, so that nobody is shown them
_INPUT = "input.png"
_STEERING = "control-{}.png"
_INGREDIENT = "ingredient-{}.c2pa"

# the contents of a file that is no image, in a folder of its own
_FILE = "contents"

NAME = re.compile(r"([0-9a-f]{32})-(0|[1-9][0-9]{0,8})-(0|[1-9][0-9]{0,3})\.(png|jpeg|webp)", re.ASCII)


@dataclass(frozen=True, slots=True)
class ImageName:
    """The parts of an image's name; `str` puts them together. Numbers have no leading zeros."""

    job_id: str
    fence: int
    index: int
    extension: Extension

    def __str__(self) -> str:
        return f"{self.job_id}-{self.fence}-{self.index}.{self.extension}"

    @property
    def file(self) -> str:
        """The file's name in its job's folder."""
        return f"{self.fence}-{self.index}.{self.extension}"

    @property
    def content_type(self) -> str:
        """Its MIME type."""
        return CONTENT_TYPES[self.extension]

    @classmethod
    def parse(cls, text: str) -> "ImageName":
        """The parts of a name from outside. Raises UnknownImage unless it is exactly one of ours."""
        match = NAME.fullmatch(text)
        if match is None:
            raise UnknownImage("no such image")
        job_id, fence, index, extension = match.groups()
        return cls(job_id, int(fence), int(index), extension)  # type: ignore[arg-type]  # NAME admits no other


class ImageStore:
    """Images in a local folder (a path, "file:///…") or a bucket ("s3://bucket/prefix", "gs://…", "az://…").

    A folder counts as full if its disk has less than `min_free_bytes` left.
    Every method raises StoreUnavailable if the store can't be reached or is full.
    """

    def __init__(self, url: str, min_free_bytes: int = 0) -> None:
        path = _local(url)
        self._place = ImageBucket(url) if path is None else ImageFolder(path, min_free_bytes)
        self._good_until = 0.0
        self._look: asyncio.Task[StoreUnavailable | None] | None = None

    async def open(self) -> None:
        """Create the folder, or try the bucket; to be called before anything else."""
        with _outages():
            await self._place.open()

    async def check(self) -> None:
        """Raise StoreUnavailable if an image can't be written now; checks at most every few seconds.

        Concurrent calls wait for the same check, which takes long for a bucket that is gone.
        """
        if time.monotonic() < self._good_until:
            return
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._looked())
        look = self._look
        await asyncio.wait({look})  # who goes meanwhile doesn't end it for the others
        trouble = look.result()
        if trouble is not None:
            raise StoreUnavailable(trouble.message) from trouble.__cause__

    async def _looked(self) -> StoreUnavailable | None:
        """What is wrong with the store now."""
        try:
            with _outages():
                await self._place.check()
        except StoreUnavailable as error:
            return error
        self._good_until = time.monotonic() + _CHECKED_S
        return None

    async def write(self, name: ImageName, data: bytes) -> None:
        """Store an image whole or not at all; it then outlives a crash of the machine."""
        await self._write(_path(name), data)

    async def write_input(self, job_id: str, data: bytes) -> None:
        """Store what a job begins with, likewise; whatever deletes the job's images deletes it too."""
        await self._write(_input_path(job_id), data)

    async def read_input(self, job_id: str) -> bytes:
        """What a job begins with. Raises UnknownImage."""
        with _outages(missing=UnknownImage("the image that the job begins with is gone")):
            return await self._place.read(_input_path(job_id))

    async def write_steering(self, job_id: str, index: int, data: bytes) -> None:
        """Store a picture that steers a job, likewise."""
        await self._write(_input_path(job_id, _STEERING.format(index)), data)

    async def read_steering(self, job_id: str, index: int) -> bytes:
        """A picture that steers a job. Raises UnknownImage."""
        with _outages(missing=UnknownImage("an image that steers the job is gone")):
            return await self._place.read(_input_path(job_id, _STEERING.format(index)))

    async def write_ingredient(self, job_id: str, index: int, data: bytes) -> None:
        """Store an ingredient of the credentials of a job's images, likewise."""
        await self._write(_input_path(job_id, _INGREDIENT.format(index)), data)

    async def read_ingredient(self, job_id: str, index: int) -> bytes:
        """An ingredient of the credentials of a job's images. Raises UnknownImage."""
        with _outages(missing=UnknownImage("an ingredient of the images' credentials is gone")):
            return await self._place.read(_input_path(job_id, _INGREDIENT.format(index)))

    async def write_file(self, file_id: str, chunks: AsyncIterator[bytes]) -> int:
        """Store a file that is no image from its parts, whole or not at all; returns its length.

        Raises what `chunks` raises; nothing is stored then.
        """
        length = 0

        async def counted() -> AsyncGenerator[bytes, None]:
            nonlocal length
            async for chunk in chunks:
                length += len(chunk)
                yield chunk

        path = _input_path(file_id, _FILE)
        try:
            with _outages():
                await self._place.write_stream(path, counted())
        except StoreUnavailable:
            self._good_until = 0.0
            raise
        return length

    async def read_file(self, file_id: str) -> AsyncGenerator[bytes, None]:
        """A file that is no image, in parts. Raises UnknownFile."""
        with _outages(missing=UnknownFile("the file's contents are gone")):
            async for chunk in self._place.read_stream(_input_path(file_id, _FILE)):
                yield chunk

    async def read_part(self, file_id: str, start: int, length: int) -> bytes:
        """A part of a file that is no image. Raises UnknownFile."""
        with _outages(missing=UnknownFile("the file's contents are gone")):
            return await self._place.read_range(_input_path(file_id, _FILE), start, length)

    async def _write(self, path: str, data: bytes) -> None:
        try:
            with _outages():
                await self._place.write(path, data)
        except StoreUnavailable:
            self._good_until = 0.0
            raise

    async def read(self, name: ImageName) -> bytes:
        """The image's bytes. Raises UnknownImage."""
        path = _path(name)
        with _outages(missing=UnknownImage("no such image")):
            return await self._place.read(path)

    async def delete_job(self, job_id: str) -> bool:
        """Delete all that a job's attempts have written; False when there was nothing."""
        if not is_job_id(job_id):
            return False
        with _outages():
            files = await self._place.files(job_id)
        await self.delete_files(job_id, files)
        return bool(files)

    @asynccontextmanager
    async def kept_for_row(self, job_id: str) -> AsyncGenerator[None, None]:
        """Let the block write the row that names what is stored under this id; if the row is refused, that is deleted.

        If the block ends without an answer, there may be a row all the same, and everything stays.
        """
        try:
            yield
        except StoreUnavailable:
            raise
        except DarkroomError:
            await self.discard(job_id)
            raise

    async def discard(self, job_id: str) -> None:
        """Delete what no row names. Where the store doesn't answer, it stays until it is swept."""
        try:
            await self.delete_job(job_id)
        except StoreUnavailable as error:
            log.warning("files of no job stay until they are swept", job_id=job_id, cause=repr(error.__cause__))

    async def delete_inputs(self, job_id: str, *, begun_with: bool, steering: int, ingredients: int) -> None:
        """Delete what a job begins with, if it begins with anything, and so many steering pictures and ingredients."""
        files = [*([_INPUT] if begun_with else []), *(_STEERING.format(index) for index in range(steering))]
        files += [_INGREDIENT.format(index) for index in range(ingredients)]
        await self.delete_files(job_id, files)

    async def delete_files(self, job_id: str, files: Collection[str]) -> None:
        """Delete files of a job, as `files_by_job` names them; others may be doing so too."""
        with _outages():
            await self._place.delete(job_id, files)

    async def files_by_job(self) -> Mapping[str, frozenset[str]]:
        """All that is stored, left-overs of crashes among it: job id -> files' names in the job's folder."""
        with _outages():
            folders = await self._place.folders()
        return {folder: files for folder, files in folders.items() if is_job_id(folder)}


def _path(name: ImageName) -> str:
    if NAME.fullmatch(str(name)) is None:  # one more look: an ImageName can also be made by hand
        raise UnknownImage("no such image")
    return f"{name.job_id}/{name.file}"


def _input_path(job_id: str, file: str = _INPUT) -> str:
    if not is_job_id(job_id):
        raise UnknownImage("no such job")
    return f"{job_id}/{file}"


def _local(url: str) -> Path | None:
    """The folder that a URL or a path names; None where it names a bucket."""
    parts = urlsplit(url)
    if "://" not in url:
        return Path(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


@contextmanager
def _outages(missing: NotFound | None = None) -> Iterator[None]:
    """What the store says leaves the block as StoreUnavailable, the cause kept; of a missing file as `missing`."""
    try:
        yield
    except FileNotFoundError as error:
        raise (missing or StoreUnavailable("the image store's folder or bucket is gone")) from error
    except (OSError, BaseError) as error:
        raise StoreUnavailable("the image store can't be reached or is full") from error
