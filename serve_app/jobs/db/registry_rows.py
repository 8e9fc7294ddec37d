"""The registry's rows: an entry for each model, alias or file that was changed or added at run time, and all changes.

The number of the newest change is the version that every router compares with its own. Rows of a kind that a later
version of Darkroom wrote stay as they are, and count for nothing.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, select

from serve_app.jobs.db.database import Transactions, keep_others_out, reads, writes
from serve_app.jobs.db.schema import registry_changes, registry_entries
from serve_app.observability.logs import get_logger
from serve_app.registry.entries import Author, Change, Content, Entries, EntryKind

log = get_logger(__name__)


class RegistryStore(Transactions):
    """Each method raises StoreUnavailable."""

    @reads
    def version(self, connection: Connection) -> int:
        """The number of changes so far."""
        return _version(connection)

    @reads
    def load(self, connection: Connection) -> tuple[int, Entries]:
        """The version, and the entries of it or of a later one."""
        version = _version(connection)
        kinds = select(registry_entries.c.kind).where(registry_entries.c.kind.not_in(EntryKind)).distinct()
        if unknown := sorted(connection.scalars(kinds)):
            log.warning("entries of the registry are of unknown kinds, and have no effect", kinds=unknown)
        return version, _entries(connection)

    @writes
    def change(
        self,
        connection: Connection,
        kind: EntryKind,
        name: str,
        changed: Callable[[Entries], Content | None],
        author: Author,
    ) -> tuple[int, Entries]:
        """Change an entry, and log it; nothing is logged where nothing differs.

        Args:
            changed: the entry's content, None for no entry, from all entries as they are; what it raises leaves all as
                it is.

        Returns:
            The version and the entries after it.
        """
        keep_others_out(connection)
        entries = _entries(connection)
        before, after = entries.of(kind).get(name), changed(entries)
        version = _version(connection)
        if before == after:
            return version, entries
        connection.execute(delete(registry_entries).where(_is(kind, name)))
        if after is not None:
            connection.execute(insert(registry_entries).values(kind=kind, name=name, content=after))
        line = {
            "version": version + 1,
            "at": self._clock(),
            "tenant": author.tenant,
            "key_id": author.key_id,
            "kind": kind,
            "name": name,
            "before": before,
            "after": after,
        }
        connection.execute(insert(registry_changes).values(line))
        return version + 1, entries.replaced(kind, name, after)

    @writes
    def settle(self, connection: Connection, kind: EntryKind, name: str, act: Callable[[Content], bool]) -> None:
        """Carry out what an entry says, if it is there, while nobody changes it.

        Args:
            act: does it, quickly, and as well a second time; returns whether the entry has no use any more.
        """
        keep_others_out(connection)
        content = _entries(connection).of(kind).get(name)
        if content is not None and act(content):
            connection.execute(delete(registry_entries).where(_is(kind, name)))

    @reads
    def changes(self, connection: Connection, *, limit: int, before: int | None = None) -> tuple[Change, ...]:
        """The changes before a version (None: all), newest first."""
        known = select(registry_changes).where(registry_changes.c.kind.in_(EntryKind))
        statement = known.order_by(registry_changes.c.version.desc()).limit(limit)
        if before is not None:
            statement = statement.where(registry_changes.c.version < before)
        return tuple(_change(row) for row in connection.execute(statement))


def _is(kind: EntryKind, name: str) -> ColumnElement[bool]:
    return (registry_entries.c.kind == kind) & (registry_entries.c.name == name)


def _version(connection: Connection) -> int:
    return connection.scalar(select(func.coalesce(func.max(registry_changes.c.version), 0))) or 0


def _entries(connection: Connection) -> Entries:
    contents: dict[str, dict[str, Any]] = {kind: {} for kind in EntryKind}
    for row in connection.execute(select(registry_entries).where(registry_entries.c.kind.in_(EntryKind))):
        contents[row.kind][row.name] = row.content
    return Entries(
        models=contents[EntryKind.MODEL],
        aliases=contents[EntryKind.ALIAS],
        files=contents[EntryKind.FILE],
        checkpoints=contents[EntryKind.CHECKPOINT],
    )


def _change(row: Row[Any]) -> Change:
    author = Author(row.tenant, row.key_id)
    return Change(row.version, row.at, author, EntryKind(row.kind), row.name, row.before, row.after)
