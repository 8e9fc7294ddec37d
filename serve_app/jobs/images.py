"""The image store: finished images by generated names, in a folder or wherever an fsspec URL leads.

A name is made of the job's id, the fence of the attempt that wrote it and the image's index, and nothing else
is ever a name: whatever doesn't match NAME exactly is an unknown image, before any path is made of it. An
attempt that lost its lease writes beside the one that holds it, never over it; only the names that the job's
result mentions count.

Knows nothing of jobs but the form of their ids, and nothing of what is in an image.
"""

import asyncio
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import fsspec

from serve_app.errors import StoreUnavailable, UnknownImage
from serve_app.jobs.job import is_job_id

Extension = Literal["png", "jpeg", "webp"]

CONTENT_TYPES: dict[str, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}

NAME = re.compile(r"([0-9a-f]{32})-([0-9]{1,9})-([0-9]{1,4})\.(png|jpeg|webp)", re.ASCII)


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
        name = cls(job_id, int(fence), int(index), extension)  # type: ignore[arg-type]  # NAME admits no other
        if str(name) != text:
            raise UnknownImage("no such image")
        return name


class ImageStore:
    """Images under an fsspec URL ("s3://bucket/prefix", "file:///…") or in a local folder.

    Blocking calls run in threads. Every method raises StoreUnavailable when the store can't be reached or is
    full.
    """

    def __init__(self, url: str) -> None:
        self._files: Any
        self._files, root = fsspec.core.url_to_fs(url)
        self._root = str(root).rstrip("/")
        self._is_local = "file" in _protocols(self._files)

    async def open(self) -> None:
        """Create the folder; to be called before anything else."""
        with _outages():
            await asyncio.to_thread(self._files.makedirs, self._root, exist_ok=True)

    async def write(self, name: ImageName, data: bytes) -> None:
        """Store an image whole or not at all; on a local disk it then outlives a crash of the machine."""
        path = self._path(name)
        try:
            with _outages():
                if self._is_local:
                    await asyncio.to_thread(_write_whole, Path(path), data)
                else:
                    await asyncio.to_thread(self._files.pipe_file, path, data)
        except FileNotFoundError as error:
            raise StoreUnavailable("the image store's folder is gone") from error

    async def read(self, name: ImageName) -> bytes:
        """The image's bytes. Raises UnknownImage."""
        try:
            with _outages():
                data: bytes = await asyncio.to_thread(self._files.cat_file, self._path(name))
        except FileNotFoundError as error:
            if self._is_local and not await asyncio.to_thread(os.path.isdir, self._root):
                raise StoreUnavailable("the image store's folder is gone") from error
            raise UnknownImage("no such image") from None
        return data

    async def delete(self, name: ImageName) -> bool:
        """Delete one image; False when there was none."""
        try:
            with _outages():
                await asyncio.to_thread(self._files.rm_file, self._path(name))
        except FileNotFoundError:
            return False
        return True

    async def delete_job(self, job_id: str) -> bool:
        """Delete all that a job's attempts have written; False when there was nothing."""
        if not is_job_id(job_id):
            return False
        try:
            with _outages():
                await asyncio.to_thread(self._files.rm, f"{self._root}/{job_id}", recursive=True)
        except FileNotFoundError:
            return False
        return True

    def _path(self, name: ImageName) -> str:
        if NAME.fullmatch(str(name)) is None:  # one more look: an ImageName can also be made by hand
            raise UnknownImage("no such image")
        return f"{self._root}/{name.job_id}/{name.fence}-{name.index}.{name.extension}"


def _protocols(files: Any) -> tuple[str, ...]:
    protocol = files.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _write_whole(path: Path, data: bytes) -> None:
    """Write beside the place, then rename; both the file and its name reach the disk before this returns."""
    path.parent.mkdir(exist_ok=True)  # not its parents: a root that is gone may be a mount that is
    partial = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _outages() -> Iterator[None]:
    """What the file system says becomes StoreUnavailable, the cause kept; a missing file passes as it is."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreUnavailable("the image store can't be reached or is full") from error
