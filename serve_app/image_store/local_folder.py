"""A folder on a disk as the place of images. What blocks runs in threads.

Paths have the form folder/file, and are trusted. Raises OSError. obstore's LocalStore can't take its place: it writes
without fsync, and into a root that is gone, which may be a mount that is away.
"""

import asyncio
import errno
import os
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path


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

    def _read(self, path: str) -> bytes:
        try:
            return (self._root / path).read_bytes()
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
