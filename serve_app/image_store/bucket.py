"""A bucket of an object store (S3 and what speaks like it, Google's, Azure's) as the place of images, by obstore.

Credentials, region and endpoint come from the environment, under the names that the store's own tools use.
Paths have the form folder/file. Raises obstore's BaseError, or OSError.
"""

from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping
from contextlib import suppress
from datetime import timedelta

import obstore
from obstore.store import from_url

# a job has been drawn for seconds by then: it is worth some patience, but it has a deadline, and others wait for it
_RETRY_S = 30

# of a stream's parts
_CHUNK_BYTES = 1 << 20

# what `check` writes: a bucket that can be listed need not be one that can be written to
_PROBE = ".darkroom"


class ImageBucket:
    """Objects under a URL: s3://bucket/prefix, gs://…, az://…."""

    def __init__(self, url: str) -> None:
        self._store = from_url(
            url,
            client_options={
                "connect_timeout": timedelta(seconds=5),
                "timeout": timedelta(seconds=_RETRY_S),
                "allow_http": True,  # whoever names an endpoint with http:// means it; the usual ones are https://
            },
            retry_config={"max_retries": 4, "retry_timeout": timedelta(seconds=_RETRY_S)},
        )

    async def open(self) -> None:
        """Write to it once, so that a wrong bucket or key fails at the start."""
        await self.check()

    async def check(self) -> None:
        """Raises where no image could be written now."""
        await obstore.put_async(self._store, _PROBE, b"")

    async def write(self, path: str, data: bytes) -> None:
        """Store an object, whole or not at all."""
        await obstore.put_async(self._store, path, data)

    async def read(self, path: str) -> bytes:
        """The object's bytes. Raises FileNotFoundError."""
        return bytes(await (await obstore.get_async(self._store, path)).bytes_async())

    async def write_stream(self, path: str, chunks: AsyncIterator[bytes]) -> None:
        """Store an object from its parts, whole or not at all."""
        await obstore.put_async(self._store, path, chunks)

    async def read_stream(self, path: str) -> AsyncGenerator[bytes, None]:
        """The object's bytes, in parts. Raises FileNotFoundError."""
        async for chunk in (await obstore.get_async(self._store, path)).stream(_CHUNK_BYTES):
            yield bytes(chunk)

    async def read_range(self, path: str, start: int, length: int) -> bytes:
        """Some of the object's bytes. Raises FileNotFoundError."""
        return bytes(await obstore.get_range_async(self._store, path, start=start, length=length))

    async def delete(self, folder: str, files: Collection[str]) -> None:
        """Delete objects, as far as they are there."""
        with suppress(FileNotFoundError):  # some stores say so, and S3 doesn't
            await obstore.delete_async(self._store, [f"{folder}/{file}" for file in files])

    async def files(self, folder: str) -> frozenset[str]:
        """The objects of one folder."""
        return (await self._list(folder)).get(folder, frozenset())

    async def folders(self) -> Mapping[str, frozenset[str]]:
        """All folders with their objects."""
        return await self._list(None)

    async def _list(self, folder: str | None) -> Mapping[str, frozenset[str]]:
        files_of = defaultdict[str, set[str]](set)
        async for chunk in obstore.list(self._store, folder, chunk_size=1000):
            for entry in chunk:
                name, _, file = entry["path"].rpartition("/")
                if name:
                    files_of[name].add(file)
        return {name: frozenset(files) for name, files in files_of.items()}
