"""A batch: lanes that take one step together. What they must have in common, and how many rows they are padded to."""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from deployments.engine.types import Priority


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What lanes must have in common to share a UNet forward; everything else is per lane.

    height, width: of the latents. pinned: the bucket is fixed, because the lanes asked for reproducible results.
    tokens: length of the text embeddings, filled up where masked: attention rounds by both, so they are no lane's own.
    """

    checkpoint: str
    height: int
    width: int
    tokens: int
    pinned: bool
    masked: bool = False


class Batchable(Protocol):
    """What the batcher reads of a lane.

    rows: of its next step, 2 with guidance, else 1. evaluations: steps of the whole lane.
    arrival: grows with submission. since: when it was submitted, here or where it was lost; monotonic seconds.
    """

    @property
    def key(self) -> BatchKey: ...
    @property
    def rows(self) -> int: ...
    @property
    def priority(self) -> Priority: ...
    @property
    def tenant(self) -> str: ...
    @property
    def arrival(self) -> int: ...
    @property
    def since(self) -> float: ...
    @property
    def evaluations(self) -> int: ...


L = TypeVar("L", bound=Batchable)


@dataclass(frozen=True, slots=True)
class Batch(Generic[L]):
    """Lanes that take their next step together, and the number of rows it is padded to."""

    lanes: tuple[L, ...]
    bucket: int

    @property
    def rows(self) -> int:
        """Rows that carry work; the rest of the bucket is padding."""
        return sum(lane.rows for lane in self.lanes)


def bucket_for(rows: int) -> int:
    """The smallest power of two that holds `rows`: within one bucket a row's bits don't depend on the others."""
    return 1 << (rows - 1).bit_length()
