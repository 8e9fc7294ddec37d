"""The settings as they are now: the configuration file's, with what the registry lays over them.

Every router looks for changes of others all the time, and knows its own at once. While the database is away the
settings stay as they were.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from serve_app.config.settings import Settings
from serve_app.errors import StoreUnavailable, UnknownEntry
from serve_app.jobs.db.registry_rows import RegistryStore
from serve_app.observability.logs import get_logger
from serve_app.registry.entries import Author, Content, Entries, EntryKind
from serve_app.registry.overlay import check_change, laid_over, merged

log = get_logger(__name__)


class LiveSettings:
    """The settings of one process. Belongs to one event loop.

    Args:
        base: of the configuration file.
        store: the registry's rows.

    Attributes:
        base: likewise.
        version: of the registry that the settings have.
        entries: of it.
        settings: the present ones.
        problems: why some entries have no effect.
    """

    def __init__(self, base: Settings, store: RegistryStore) -> None:
        self.base = base
        self.version = 0
        self.entries = Entries()
        self.settings = base
        self.problems: Mapping[tuple[EntryKind, str], str] = {}
        self._store = store
        self._loop: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read the registry, and begin to follow it. Raises StoreUnavailable: a restricted model must not be open."""
        await self.look()
        self._loop = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """End."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])

    def check(self) -> None:
        """Raise what ended the loop, if it has ended."""
        if self._loop is not None and self._loop.done() and not self._loop.cancelled():
            self._loop.result()

    async def _follow(self) -> None:
        away = False
        while True:
            await asyncio.sleep(self.base.registry.poll_s)
            try:
                await self.look()
                away = False
            except StoreUnavailable as error:
                if not away:
                    log.warning("changes of models aren't seen: the job database is away", cause=repr(error.__cause__))
                away = True

    async def look(self) -> None:
        """Take in what has changed. Raises StoreUnavailable."""
        if await self._store.version() != self.version:
            self._take(*await self._store.load())

    def _take(self, version: int, entries: Entries) -> None:
        if version <= self.version:  # another call of this process was quicker
            return
        overlay = laid_over(self.base, entries)
        self.version, self.entries = version, entries
        self.settings, self.problems = overlay.settings, overlay.problems
        for (kind, name), problem in overlay.problems.items():
            log.warning("an entry of the registry has no effect", kind=kind, name=name, reason=problem)

    async def change_model(self, name: str, patch: Mapping[str, Any], author: Author) -> None:
        """Change a model's defaults, limits, tenants, or whether it serves.

        Args:
            patch: fields of ModelSettings with their new values, of defaults and limits in part; None for the
                configuration file's.

        Raises:
            UnknownEntry: there is no such model.
            InvalidRequest: the settings can't be so; nothing was changed.
            StoreUnavailable: nothing was changed.
        """
        if name not in self.settings.models and name not in self.entries.models:
            raise UnknownEntry(f"no model {ascii(name)[:66]}; models: {', '.join(self.settings.models)}")
        await self.change(
            EntryKind.MODEL, name, lambda entries: merged(entries.models.get(name, {}), patch) or None, author
        )

    async def set_alias(self, name: str, content: Content, author: Author) -> None:
        """Let an alias mean a model, whatever it meant before. Raises InvalidRequest, StoreUnavailable."""
        await self.change(EntryKind.ALIAS, name, lambda _: content, author)

    async def remove_alias(self, name: str, author: Author) -> None:
        """Forget an alias; one that the configuration file has too means what the file says.

        Raises:
            UnknownEntry: the registry has no such alias.
            InvalidRequest, StoreUnavailable: nothing was changed.
        """

        def removed(entries: Entries) -> None:
            if name not in entries.aliases:
                where = "in the configuration file alone" if name in self.base.aliases else "nowhere"
                raise UnknownEntry(f"no alias {ascii(name)[:66]} was set at run time: it is {where}")

        await self.change(EntryKind.ALIAS, name, removed, author)

    async def change(
        self, kind: EntryKind, name: str, changed: Callable[[Entries], Content | None], author: Author
    ) -> None:
        """Change an entry, and take it in at once.

        Args:
            changed: the entry's content, None for no entry, from all entries as they are.

        Raises:
            InvalidRequest: it would have no effect; nothing was changed, as when `changed` raises.
            StoreUnavailable: nothing was changed.
        """

        def checked(entries: Entries) -> Content | None:
            content = changed(entries)
            check_change(self.base, entries.replaced(kind, name, content), kind, name)
            return content

        self._take(*await self._store.change(kind, name, checked, author))
        log.info("the registry was changed", kind=kind, name=name, version=self.version, tenant=author.tenant)
