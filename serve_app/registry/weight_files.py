"""Files of weights that are uploaded and removed at run time, in the folders that requests name them from.

An upload grows in a quarantine within its folder, where none is listed. Its header is checked before there are tensors.
Then an entry of the registry says that it belongs into the folder, and it is moved there. A removal is an entry, too,
then the file goes. So whoever dies in between leaves an entry that the next one carries out (`settle`), and what has no
entry was never there. The uploader holds a lock on its file; a file in quarantine that nobody holds is left over.
"""

import asyncio
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.engine.checkpoints.weight_folder import WeightFolder
from deployments.engine.conditioning.controlnet_files import ControlnetSource
from deployments.engine.errors import InvalidRequest
from deployments.engine.vae.folder import VaeSource
from serve_app.config.settings import Settings
from serve_app.errors import BodyTooLarge, StoreUnavailable, UnknownEntry
from serve_app.jobs.db.registry_rows import RegistryStore
from serve_app.observability.logs import get_logger
from serve_app.registry.entries import Author, Content, Entries, EntryKind

log = get_logger(__name__)

_QUARANTINE = ".quarantine"
_ENDING = ".safetensors"

# a file's first bytes, by which safetensors' own reader and its lookalikes are told apart
_BEGINNING = 64

# safetensors' own limit
_LONGEST_HEADER = 100 << 20

# what is gathered of a body before it is written
_BLOCK = 1 << 20

Folders = Mapping[str, WeightFolder[Any]]


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A file or a diffusers folder of weights that requests may name.

    Attributes:
        sha256: of a file that was uploaded and hasn't been replaced since; None where it isn't known.
    """

    name: str
    bytes: int
    sha256: str | None


class WeightFiles:
    """The folders of weights, as far as they can be changed.

    Args:
        folders: by the settings' names for them; "embeddings" are the text encoder's.
        settings: with the models here, and bounds of uploads.
        store: the registry's rows.
    """

    def __init__(self, folders: Folders, settings: Settings, store: RegistryStore) -> None:
        self._folders = folders
        self._families = {model.family for model in settings.models.values()}
        self._settings = settings.registry
        self._store = store
        self._uploading = asyncio.Lock()

    async def files(self) -> Mapping[str, tuple[WeightFile, ...]]:
        """What each folder offers. Raises StoreUnavailable."""
        _, entries = await self._store.load()

        def read() -> Mapping[str, tuple[WeightFile, ...]]:
            return {
                kind: tuple(_file(folder, name, entries.files.get(f"{kind}/{name}", {})) for name in folder.names())
                for kind, folder in self._folders.items()
            }

        with _disk_errors():
            return await asyncio.to_thread(read)

    async def upload(
        self, kind: str, name: str, size: int, parts: AsyncIterator[bytes], author: Author, *, replaces: bool
    ) -> WeightFile:
        """Put a file into a folder; requests may name it from then on, on every router and replica.

        Args:
            kind: the folder's name in the settings.
            name: of the file, without its ending.
            size: bytes of the file.
            parts: its content.
            author: whoever does it.
            replaces: whether it may take the place of another file.

        Raises:
            UnknownEntry: there is no such folder.
            BodyTooLarge: it is larger than the settings allow; nothing was read.
            InvalidRequest: it isn't such weights, is cut short, there is another file of its name, or the folder lies
                in a Python package.
            StoreUnavailable: the disk or the database has no room or can't be reached.
        """
        folder, root = self._changeable(kind)
        most = self._settings.max_upload_bytes
        if size > most:
            raise BodyTooLarge(f"the file has {size} bytes, at most {most} are taken (registry.max_upload_bytes)")
        key = f"{kind}/{name}"
        async with self._uploading:  # so that the room on the disk is counted once
            await self.settle()
            await asyncio.to_thread(_place, folder, name)
            with _disk_errors():
                upload = await asyncio.to_thread(_Upload, root, name, size)
            named = False  # whether there may be an entry that names it
            try:
                with _disk_errors():
                    digest = await self._received(folder, upload, parts)
                    if await asyncio.to_thread(_is_there, folder, name, size, digest):
                        return WeightFile(name, size, digest)
                content = {"sha256": digest, "bytes": size, "written": upload.written, "upload": upload.id}

                def placed(entries: Entries) -> Content:
                    waits = _waiting(root, name, entries.files.get(key, {})).exists()
                    if not replaces and (waits or folder.path_of(name) is not None):
                        why = "is there already, with another content: replace it, or take another name"
                        raise folder.refused(name, why)
                    return content

                named = True
                try:
                    await self._store.change(EntryKind.FILE, key, placed, author)
                except InvalidRequest:
                    named = False
                    raise
                await self._carry_out(kind, name)
            finally:
                await asyncio.to_thread(upload.close, kept=named)
        log.info("a file of weights was uploaded", kind=kind, name=name, bytes=size, sha256=digest)
        return WeightFile(name, size, digest)

    async def _received(self, folder: WeightFolder[Any], upload: "_Upload", parts: AsyncIterator[bytes]) -> str:
        """Write the file; returns its SHA-256. Raises InvalidRequest, StoreUnavailable, OSError."""
        checked = False
        block = b""
        async for part in parts:
            block += part
            if checked and len(block) < _BLOCK:
                continue
            await asyncio.to_thread(upload.write, block)
            block = b""
            if not checked and upload.has_header:  # by it and the size, before there are tensors
                await asyncio.to_thread(self._check, folder, upload)
                await asyncio.to_thread(upload.reserve, self._settings.min_free_bytes)
                checked = True
        await asyncio.to_thread(upload.write, block)
        if upload.received != upload.size:
            raise InvalidRequest(f"{upload.received} bytes came, and Content-Length says {upload.size}")
        await asyncio.to_thread(self._check, folder, upload)
        return await asyncio.to_thread(upload.finish)

    def _check(self, folder: WeightFolder[Any], upload: "_Upload") -> None:
        """Raise InvalidRequest unless a file is one of the folder's kind, for some of the models here."""
        entry = folder.check_file(upload.name, upload.path)
        if isinstance(entry, ControlnetSource | VaeSource) and not self._families & set(entry.families):
            families = " and ".join(entry.families)
            raise folder.refused(upload.name, f"is for {families} models, of which there is none here")

    async def remove(self, kind: str, name: str, author: Author) -> None:
        """Take a file out of a folder. Jobs that name it and haven't begun fail.

        Raises:
            UnknownEntry: there is no such file or folder.
            InvalidRequest: it is a diffusers folder, or lies in a Python package.
            StoreUnavailable: the disk or the database can't be reached.
        """
        folder, _ = self._changeable(kind)
        await self.settle()

        def removed(_: Entries) -> Content:
            path = folder.path_of(name)
            if path is None:
                raise UnknownEntry(f"no {folder.kind} named {ascii(name)[:66]}")
            if path.is_dir():
                raise _no_file(folder, name)
            status = path.stat()
            return {"removed": True, "bytes": status.st_size, "written": status.st_mtime_ns}

        with _disk_errors():
            await self._store.change(EntryKind.FILE, f"{kind}/{name}", removed, author)
        await self._carry_out(kind, name)
        log.info("a file of weights was removed", kind=kind, name=name)

    async def settle(self) -> None:
        """Carry out what was begun and not ended, and delete what was left over. Raises StoreUnavailable."""
        _, entries = await self._store.load()
        for key, content in entries.files.items():
            kind, _, name = key.partition("/")
            root = self._folders[kind].folder if kind in self._folders else None
            if root is not None and (content.get("removed") or _waiting(root, name, content).exists()):
                await self._carry_out(kind, name)
        for folder in self._folders.values():
            if folder.folder is not None:
                with _disk_errors():
                    await asyncio.to_thread(_clear, folder.folder / _QUARANTINE)

    async def _carry_out(self, kind: str, name: str) -> None:
        """Do what the entry of a file says. Raises StoreUnavailable."""
        folder, root = self._present(kind)

        def act(content: Content) -> bool:
            with _disk_errors():
                if content.get("removed"):
                    path = folder.path_of(name)
                    if path is not None and path.is_file() and _is_of(path, content):
                        path.unlink()
                    return True
                waiting = _waiting(root, name, content)
                if waiting.exists():
                    waiting.replace(_place(folder, name))
                return False

        await self._store.settle(EntryKind.FILE, f"{kind}/{name}", act)

    def _changeable(self, kind: str) -> tuple[WeightFolder[Any], Path]:
        folder, root = self._present(kind)
        if folder.is_packaged:
            raise InvalidRequest(
                f"{_setting(kind)} lies in a Python package, whose files aren't changed: name a folder of your own "
                "there",
                "folder",
            )
        return folder, root

    def _present(self, kind: str) -> tuple[WeightFolder[Any], Path]:
        folder = self._folders.get(kind)
        if folder is None:
            known = ", ".join(self._folders)
            raise UnknownEntry(f"no folder {ascii(kind)[:66]} that files can be put into; folders: {known}")
        if folder.folder is None:
            raise UnknownEntry(f"the settings name no folder of {folder.kind}s ({_setting(kind)})")
        return folder, folder.folder


class _Upload:
    """A file in quarantine, which this process holds a lock on. Each method may raise OSError."""

    def __init__(self, root: Path, name: str, size: int) -> None:
        self.id = secrets.token_hex(16)
        self.name = name
        self.size = size
        self.received = 0
        self._digest = hashlib.sha256()
        self._beginning = b""
        quarantine = root / _QUARANTINE
        self._folder = quarantine / self.id
        self.path = self._folder / f"{name}{_ENDING}"
        quarantine.mkdir(exist_ok=True)
        with _locked(quarantine):  # or it could be cleared before its lock is taken
            self._folder.mkdir()
            self._file = self.path.open("xb", buffering=0)
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self._file.truncate(size)  # its header is compared with its size

    @property
    def has_header(self) -> bool:
        """Whether the header is there, or enough of the file to see that it has none."""
        if self.received >= self.size:
            return True
        if len(self._beginning) < _BEGINNING:
            return False
        needed = 8 + int.from_bytes(self._beginning[:8], "little")
        return self.received >= needed or needed > min(self.size, _LONGEST_HEADER)

    @property
    def written(self) -> int:
        """When it was written, in ns."""
        return os.fstat(self._file.fileno()).st_mtime_ns

    def write(self, block: bytes) -> None:
        """Append."""
        rest = memoryview(block)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._digest.update(block)
        self._beginning = (self._beginning + block[:_BEGINNING])[:_BEGINNING]
        self.received += len(block)

    def reserve(self, min_free_bytes: int) -> None:
        """Take the room on the disk. Raises StoreUnavailable."""
        if shutil.disk_usage(self._folder).free < self.size - self.received + min_free_bytes:
            raise StoreUnavailable("the disk of the folder of weights has no room for the file")
        os.posix_fallocate(self._file.fileno(), 0, self.size)

    def finish(self) -> str:
        """Flush; returns the SHA-256."""
        os.fsync(self._file.fileno())
        return self._digest.hexdigest()

    def close(self, *, kept: bool) -> None:
        """Delete what wasn't moved away; or keep it, for whoever settles next."""
        with self._file:
            if not kept:
                self.path.unlink(missing_ok=True)
            if not self.path.exists():
                with suppress(FileNotFoundError):  # somebody cleared it
                    self._folder.rmdir()


def _setting(kind: str) -> str:
    """The setting that names a folder."""
    return "stages.text_encoder.embeddings" if kind == "embeddings" else f"{kind}.folder"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Nobody else passes here with this folder meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnavailable("the folder of weights can't be written, or is full") from error


def _clear(quarantine: Path) -> None:
    """Delete the files that nobody holds: all that is to be kept of them was moved away before."""
    if not quarantine.is_dir():
        return
    with _locked(quarantine):
        for folder in quarantine.iterdir():
            with suppress(FileNotFoundError):  # an upload that ends just now
                _clear_upload(folder)


def _clear_upload(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            path.unlink()
    folder.rmdir()


def _waiting(root: Path, name: str, content: Content) -> Path:
    """Where the file of an entry is before it is moved into its folder."""
    return root / _QUARANTINE / str(content.get("upload", "none")) / f"{name}{_ENDING}"


def _place(folder: WeightFolder[Any], name: str) -> Path:
    """Where a file of a name is put. Raises InvalidRequest."""
    if not folder.is_name(name) or folder.folder is None:
        raise folder.refused(name, "has a name that requests can't say: rename it")
    path = folder.path_of(name)
    if path is not None and path.is_dir():
        raise _no_file(folder, name)
    if path is None or path.suffix.lower() != _ENDING:
        return folder.folder / f"{name}{_ENDING}"
    return path


def _no_file(folder: WeightFolder[Any], name: str) -> InvalidRequest:
    return folder.refused(name, "is a folder, which can only be changed on the disk")


def _is_there(folder: WeightFolder[Any], name: str, size: int, digest: str) -> bool:
    """Whether a folder has just this file."""
    path = folder.path_of(name)
    if path is None or not path.is_file() or path.stat().st_size != size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest


def _is_of(path: Path, content: Content) -> bool:
    """Whether a file is the one that an entry is of, and no later one."""
    status = path.stat()
    return (status.st_size, status.st_mtime_ns) == (content.get("bytes"), content.get("written"))


def _file(folder: WeightFolder[Any], name: str, content: Content) -> WeightFile:
    path = folder.path_of(name)
    if path is None:  # it went meanwhile
        return WeightFile(name, 0, None)
    files = [path] if path.is_file() else [one for one in path.iterdir() if one.is_file()]
    sha256 = content.get("sha256") if path.is_file() and _is_of(path, content) else None
    return WeightFile(name, sum(one.stat().st_size for one in files), sha256)
