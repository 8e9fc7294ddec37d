"""A folder on a disk as the place of images. What blocks runs in threads.

Paths have the form folder/file, and are trusted. Raises OSError. obstore's LocalStore can't take its place: it writes
without fsync, and into a root that is gone, which may be a mount that is away.
"""

import asyncio
import errno
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from pathlib import Path

# of a stream's parts
_CHUNK_BYTES = 1 << 20


class ImageFolder:
    """Files in folders under `root`; `check` fails if the disk has less than `min_free_bytes` left."""

    def __init__(self, root: Path, min_free_bytes: int) -> None:
        self._root = root
        self._min_free_bytes = min_free_bytes

    async def open(self) -> None:
        """Create the folder."""
        await asyncio.to_thread(self._root.mkdir, parents=True, exist_ok=True)

    async def check(self) -> None:
        """Raises OSError where no image could be written now: folder gone, not ours to write to, or the disk full."""
        await asyncio.to_thread(self._check)

    async def write(self, path: str, data: bytes) -> None:
        """Store a file whole or not at all; it then outlives a crash of the machine."""
        await asyncio.to_thread(_write_whole, self._root / path, data)

    async def read(self, path: str) -> bytes:
        """The file's bytes. Raises FileNotFoundError where it is missing, another OSError where the root is."""
        return await asyncio.to_thread(self._read, path)

    async def write_stream(self, path: str, chunks: AsyncIterator[bytes]) -> None:
        """Store a file from its parts, whole or not at all, as `write` does."""
        partial = await asyncio.to_thread(_PartialFile, self._root / path)
        try:
            async for chunk in chunks:
                await asyncio.to_thread(partial.write, chunk)
            await asyncio.to_thread(partial.keep)
        except BaseException:
            partial.close()
            _delete((self._root / path).parent, ())  # a folder with nothing else in it goes too
            raise
        await asyncio.to_thread(partial.close)

    async def read_stream(self, path: str) -> AsyncGenerator[bytes, None]:
        """The file's bytes, in parts. Raises as `read`."""
        start = 0
        while chunk := await self.read_range(path, start, _CHUNK_BYTES):
            yield chunk
            start += len(chunk)

    async def read_range(self, path: str, start: int, length: int) -> bytes:
        """Some of the file's bytes. Raises as `read`."""
        return await asyncio.to_thread(self._read, path, start, length)

    async def delete(self, folder: str, files: Collection[str]) -> None:
        """Delete files of a folder, as far as they are there, and the folder when it is empty then."""
        await asyncio.to_thread(_delete, self._root / folder, files)

    async def files(self, folder: str) -> frozenset[str]:
        """The files of one folder, left-overs of a crash among them; none where there is no such folder."""
        return await asyncio.to_thread(_files, self._root / folder)

    async def folders(self) -> Mapping[str, frozenset[str]]:
        """All folders with their files."""
        return await asyncio.to_thread(self._folders)

    def _check(self) -> None:
        disk = os.statvfs(self._root)
        if disk.f_bavail * disk.f_frsize < self._min_free_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if not os.access(self._root, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    def _read(self, path: str, start: int = 0, length: int = -1) -> bytes:
        try:
            with open(self._root / path, "rb") as file:
                file.seek(start)
                return file.read(length)
        except FileNotFoundError:
            if self._root.is_dir():
                raise
            raise OSError(errno.EIO, "the folder is gone") from None

    def _folders(self) -> Mapping[str, frozenset[str]]:
        with os.scandir(self._root) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        return {name: _files(self._root / name) for name in names}


def _files(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except FileNotFoundError:  # it never was, or another process has just deleted it
        return frozenset()


def _delete(folder: Path, files: Collection[str]) -> None:
    for file in files:
        (folder / file).unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
            raise


def _write_whole(path: Path, data: bytes) -> None:
    partial = _PartialFile(path)
    try:
        partial.write(data)
        partial.keep()
    finally:
        partial.close()


class _PartialFile:
    """A file beside the place that it is written for.

    Args:
        path: that place. Its folder is created, but not the folder's parents: a root that is gone may be a mount that
            is.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        self._path = path
        self._partial = path.with_name(f".{secrets.token_hex(8)}.part")
        self._file = open(self._partial, "xb")  # noqa: SIM115  # its parts come one by one

    def write(self, data: bytes) -> None:
        """Append to it."""
        self._file.write(data)

    def keep(self) -> None:
        """Put it in its place; both the file and its name are on the disk then."""
        self._file.flush()
        os.fsync(self._file.fileno())
        os.replace(self._partial, self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Close it; what wasn't kept is deleted."""
        self._file.close()
        self._partial.unlink(missing_ok=True)
