"""What a stage's memory is planned to hold, as a table: at its start, in `/ready`, for `darkroom config check`.

Plain numbers and no torch, because the front shows it too. plan.py fills it in.
"""

from dataclasses import dataclass
from typing import Literal

from deployments.engine.config import MemoryPolicy

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """A component of a checkpoint, in bytes.

    weights: all of its. on_device: of the checkpoint's, and of others that stay, what is there while it works.
    activations: its peak, with what lanes hold, for `batch` of the largest that may be asked for. fits: on_device and
    activations together are within the limit.
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
    """policy: the choice, and why. limit: bytes, and limit_origin where they come from.

    unknown: checkpoints whose configuration couldn't be read, so that nothing is planned for them.
    """

    policy: MemoryPolicy
    why: str
    limit: int
    limit_origin: str
    rows: tuple[MemoryRow, ...]
    unknown: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For people."""
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
    """Bytes for people."""
    return f"{size / (1 << 20):,.1f} MiB" if size < GIB else f"{size / GIB:,.2f} GiB"
