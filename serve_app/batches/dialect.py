"""What a dialect knows of its batches: their lines as requests, and the files of their answers.

`BatchDriver` knows when; a dialect knows what.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from serve_app.batches.batch import Batch, BatchLine, StoredFile
from serve_app.schemas.generation_request import GenerationRequest


@dataclass(frozen=True, slots=True)
class LineRequest:
    """A line in native words; `names`: native field -> its name in the line, for errors."""

    request: GenerationRequest
    names: Mapping[str, str] = field(default_factory=dict)


class AnswerFiles(NamedTuple):
    """The files of a batch's answers, whose bytes are stored; None for no such answers."""

    output: StoredFile | None = None
    errors: StoredFile | None = None


class BatchLines(Protocol):
    """The lines of one batch."""

    @property
    def total(self) -> int:
        """Their number."""

    async def request(self, line: int) -> LineRequest:
        """A line's request. Raises DarkroomError if it can't be one."""

    async def answer(self, batch: Batch, ends: Mapping[int, BatchLine]) -> AnswerFiles:
        """Write the files of a batch whose lines have ended; `ends` lacks those that never began."""


class BatchDialect(Protocol):
    """A dialect that has batches."""

    async def read(self, batch: Batch) -> BatchLines:
        """The lines of a batch, all of them looked at. Raises BatchRefused."""
