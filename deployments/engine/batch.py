"""A batch: lanes that take one step together, their common key, and the bucket that their rows are padded to."""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from deployments.engine.types import Priority


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What lanes must have in common to share a UNet forward; everything else is per lane.

    Attributes:
        height, width: of the latents.
        tokens: length of the text embeddings. Part of the key, as `masked` is, because attention rounds by both.
        pinned: whether the bucket is fixed, for reproducible lanes.
        masked: whether texts are padded.
        tiling: whether convolutions wrap around.
    """

    checkpoint: str
    height: int
    width: int
    tokens: int
    pinned: bool
    masked: bool = False
    tiling: bool = False


class Batchable(Protocol):
    """What the batcher reads of a lane (see Lane)."""

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
    """Lanes that take their next step together, padded to `bucket` rows."""

    lanes: tuple[L, ...]
    bucket: int

    @property
    def rows(self) -> int:
        """Rows without the padding."""
        return sum(lane.rows for lane in self.lanes)


def bucket_for(rows: int) -> int:
    """The smallest power of two that holds `rows`: within one bucket a row's bits don't depend on the others."""
    return 1 << (rows - 1).bit_length()
