"""The memory plan of a stage as a table: logged at its start, in `/ready`, and in `darkroom config check`.

No torch here, because the front shows it too. plan.py fills it in.
"""

from dataclasses import dataclass
from typing import Literal

from deployments.engine.config import MemoryPolicy

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """A component of a checkpoint; sizes in bytes.

    Attributes:
        weights: all of the component's.
        on_device: weights that are on the device while it works, other checkpoints' included.
        activations: its peak and the lanes' tensors, for `batch`.
        batch: the largest batch of the largest allowed image, for people.
        fits: whether on_device and activations together are within the limit.
    """

    checkpoint: str
    component: Literal["UNet", "VAE"]
    weights: int
    on_device: int
    activations: int
    batch: str
    fits: bool


@dataclass(frozen=True, slots=True)
class MemoryTable:
    """The memory plan of a stage.

    Attributes:
        why: the reason for the policy, for people.
        limit: bytes for weights and activations.
        limit_origin: where the limit comes from, for people.
        unknown: checkpoints that aren't planned, because their configuration couldn't be read.
    """

    policy: MemoryPolicy
    why: str
    limit: int
    limit_origin: str
    rows: tuple[MemoryRow, ...]
    unknown: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The table as text."""
        head = ("checkpoint", "component", "weights", "on the device", "activations", "of", "in all", "")
        table = [head] + [
            (
                row.checkpoint,
                row.component,
                mib(row.weights),
                mib(row.on_device),
                mib(row.activations),
                row.batch,
                mib(row.on_device + row.activations),
                "" if row.fits else "doesn't fit",
            )
            for row in self.rows
        ]
        widths = [max(len(line[column]) for line in table) for column in range(len(head))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
        ]
        unknown = [f"not planned, its configuration isn't there yet: {name}" for name in self.unknown]
        choice = f"memory: {self.policy} ({self.why}); the limit is {mib(self.limit)}, {self.limit_origin}"
        return [choice, *(lines if self.rows else []), *unknown]


def mib(size: int) -> str:
    """Bytes as text, in MiB or GiB."""
    return f"{size / (1 << 20):,.1f} MiB" if size < GIB else f"{size / GIB:,.2f} GiB"
