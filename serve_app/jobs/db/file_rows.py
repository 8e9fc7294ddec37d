"""Files of tenants: one row for each; the bytes are in the image store, under the same id."""

from collections.abc import Collection

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, select

from deployments.engine.errors import InvalidRequest
from serve_app.batches.batch import UNFINISHED_BATCHES, UPLOADED, FilePurpose, StoredFile
from serve_app.errors import TooManyFiles, UnknownFile
from serve_app.jobs.db.database import Transactions, keep_others_out, reads, writes
from serve_app.jobs.db.schema import batches, files


class FileStore(Transactions):
    """Each method raises StoreUnavailable."""

    @writes
    def add(self, connection: Connection, file: StoredFile, *, max_files: int, max_bytes: int) -> None:
        """Add a file whose bytes are stored.

        Args:
            file: its row.
            max_files, max_bytes: most uploaded files of its tenant, and most bytes of them.

        Raises:
            TooManyFiles: the tenant has as many.
        """
        keep_others_out(connection)
        _check(connection, file.tenant, file.bytes, max_files, max_bytes)
        add_file(connection, file)

    @reads
    def check(self, connection: Connection, tenant: str, *, max_files: int, max_bytes: int) -> None:
        """Raise TooManyFiles if a tenant may upload no more."""
        _check(connection, tenant, 1, max_files, max_bytes)

    @reads
    def get(self, connection: Connection, file_id: str, *, tenant: str | None) -> StoredFile:
        """A file. Raises UnknownFile, also for another tenant's (None: whosever it is)."""
        return file_of(connection, file_id, tenant)

    @reads
    def page(
        self,
        connection: Connection,
        *,
        tenant: str | None,
        purposes: Collection[FilePurpose],
        limit: int,
        after: str | None = None,
        oldest_first: bool = False,
    ) -> tuple[StoredFile, ...]:
        """A tenant's files (None: all tenants') of these purposes, newest first by default, behind the id `after`."""
        order = files.c.id.asc() if oldest_first else files.c.id.desc()
        statement = select(files).where(files.c.purpose.in_(sorted(purposes))).order_by(order).limit(limit)
        if tenant is not None:
            statement = statement.where(files.c.tenant == tenant)
        if after is not None:
            statement = statement.where(files.c.id > after if oldest_first else files.c.id < after)
        return tuple(_of(row) for row in connection.execute(statement))

    @reads
    def known(self, connection: Connection, file_ids: Collection[str]) -> frozenset[str]:
        """The ids among these that are files'."""
        return frozenset(connection.scalars(select(files.c.id).where(files.c.id.in_(sorted(file_ids)))))

    @writes
    def expire(self, connection: Connection) -> tuple[str, ...]:
        """Delete the files whose time is over and that no unfinished batch reads; returns their ids."""
        keep_others_out(connection)  # a batch of one may be created now
        old = delete(files).where(files.c.expires_at < self._clock(), ~_in_use()).returning(files.c.id)
        return tuple(connection.scalars(old))

    @writes
    def delete(self, connection: Connection, file_id: str, *, tenant: str | None = None) -> None:
        """Delete a file.

        Raises:
            UnknownFile: also for another tenant's (None: whosever it is).
            InvalidRequest: a batch that hasn't ended reads it.
        """
        keep_others_out(connection)  # a batch of it may be created now
        file_of(connection, file_id, tenant)
        if connection.execute(delete(files).where(files.c.id == file_id, ~_in_use())).rowcount != 1:
            raise InvalidRequest(
                "the file is the input of a batch that hasn't ended: cancel the batch first", "file_id"
            )


def file_of(connection: Connection, file_id: str, tenant: str | None) -> StoredFile:
    """A file. Raises UnknownFile, also for another tenant's (None: whosever it is)."""
    row = connection.execute(select(files).where(files.c.id == file_id)).one_or_none()
    if row is None or (tenant is not None and row.tenant != tenant):
        raise UnknownFile("no such file")
    return _of(row)


def add_file(connection: Connection, file: StoredFile) -> None:
    """Insert a file's row."""
    row = {column.name: getattr(file, column.name) for column in files.columns}
    connection.execute(insert(files).values(row))


def _check(connection: Connection, tenant: str, more: int, max_files: int, max_bytes: int) -> None:
    uploaded = (files.c.tenant == tenant) & files.c.purpose.in_(UPLOADED)
    counts = func.count().label("number"), func.coalesce(func.sum(files.c.bytes), 0).label("bytes")
    stored = connection.execute(select(*counts).where(uploaded)).one()
    if stored.number >= max_files:
        raise TooManyFiles(f"{stored.number} files are uploaded, {max_files} are allowed: delete some")
    if stored.bytes + more > max_bytes:
        raise TooManyFiles(f"{stored.bytes} bytes of files are uploaded, {max_bytes} are allowed: delete some")


def _in_use() -> ColumnElement[bool]:
    unfinished = batches.c.state.in_(sorted(UNFINISHED_BATCHES))
    return select(batches.c.id).where(batches.c.input_file == files.c.id, unfinished).exists()


def _of(row: Row[tuple[object, ...]]) -> StoredFile:
    return StoredFile(**row._mapping)
