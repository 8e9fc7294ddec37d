"""What the registry keeps.

Entries of models that were added, of models and aliases that differ from the configuration file, of files of weights
that were uploaded or are being removed, and each change.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

# an entry's content as JSON: of a checkpoint what added_models.py writes, of a model the changed fields of
# ModelSettings, of an alias those of ModelAlias, of a file what weight_files.py writes
Content = Mapping[str, Any]


class EntryKind(StrEnum):
    """What an entry is of."""

    CHECKPOINT = "checkpoint"
    """A model that the configuration file hasn't."""
    MODEL = "model"
    ALIAS = "alias"
    FILE = "file"


class AdditionState(StrEnum):
    """How far a model is that is added or removed."""

    DOWNLOADING = "downloading"
    """Its files are on their way from the hub."""
    ADDING = "adding"
    """Its first image is being drawn."""
    READY = "ready"
    FAILED = "failed"
    """Its first image couldn't be drawn."""
    REMOVING = "removing"
    """Its last images are being drawn."""


_FIELDS: Mapping[EntryKind, str] = {
    EntryKind.CHECKPOINT: "checkpoints",
    EntryKind.MODEL: "models",
    EntryKind.ALIAS: "aliases",
    EntryKind.FILE: "files",
}


@dataclass(frozen=True, slots=True)
class Entries:
    """All entries, by name; a file's is `<folder>/<name>`."""

    models: Mapping[str, Content] = field(default_factory=dict)
    aliases: Mapping[str, Content] = field(default_factory=dict)
    files: Mapping[str, Content] = field(default_factory=dict)
    checkpoints: Mapping[str, Content] = field(default_factory=dict)

    def of(self, kind: EntryKind) -> Mapping[str, Content]:
        """Those of a kind."""
        entries: Mapping[str, Content] = getattr(self, _FIELDS[kind])
        return entries

    def replaced(self, kind: EntryKind, name: str, content: Content | None) -> "Entries":
        """With another content of one entry; without it for None."""
        changed = {other: of_other for other, of_other in self.of(kind).items() if other != name}
        if content is not None:
            changed[name] = content
        return replace(self, **{_FIELDS[kind]: changed})


@dataclass(frozen=True, slots=True)
class Author:
    """Who changes the registry: a tenant's key; "" and None without keys, and for the service itself."""

    tenant: str
    key_id: str | None


@dataclass(frozen=True, slots=True)
class Change:
    """A change of one entry; `before` and `after` are its content, None where there was or is none.

    Attributes:
        version: counts the changes from 1 on.
    """

    version: int
    at: datetime
    author: Author
    kind: EntryKind
    name: str
    before: Content | None
    after: Content | None
