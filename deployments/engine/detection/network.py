"""A detector of one look: the cells of a grid say what stands on them, and how far its edges are.

Without anchors and with one grid, as FCOS (arXiv:1904.01355) at a single level: a way down, a way up again that brings
the coarse levels' sight to the grid, and one convolution that tells. GroupNorm, so that a picture's result doesn't
depend on others in its batch.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

GRID_LEVEL = 3
"""Of the way down, at which the grid is: a cell for 8 x 8 pixels."""
STRIDE = 2**GRID_LEVEL
EDGES = 4
"""Left, top, right, bottom."""
_GROUPS = 8


class GridNetwork(nn.Module):
    """The network.

    Args:
        widths: channels of each level of the way down, multiples of 8; each level halves the sides.
        classes: number of them.
    """

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.classes = classes
        width = widths[GRID_LEVEL - 1]
        self.levels = nn.ModuleList(_Level(before, after) for before, after in zip((3, *widths), widths, strict=False))
        self.lateral = nn.ModuleList(nn.Conv2d(one, width, 1) for one in widths[GRID_LEVEL - 1 :])
        self.mix = _Block(width)
        self.head = nn.Conv2d(width, classes + EDGES, 1)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What stands on each cell.

        Args:
            pixels: (pictures, 3, side, side), 0..1; the side is a multiple of 2 to the number of levels.

        Returns:
            Logits of the classes (pictures, classes, rows, columns), and the distances in cells from a cell's middle to
            the left, top, right and bottom edge (pictures, 4, rows, columns), above 0.
        """
        seen = []
        for level in self.levels:
            pixels = level(pixels)
            seen.append(pixels)
        levels = list(zip(self.lateral, seen[GRID_LEVEL - 1 :], strict=True))
        lateral, coarsest = levels.pop()
        grid = lateral(coarsest)
        for lateral, finer in reversed(levels):
            grid = F.interpolate(grid, scale_factor=2.0, mode="nearest") + lateral(finer)
        told = self.head(self.mix(grid))
        return told[:, : self.classes], told[:, self.classes :].clamp(max=10.0).exp()


class _Level(nn.Module):
    """Half the sides, then a residual block."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(before, after, 3, stride=2, padding=1)
        self.block = _Block(after)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        halved: torch.Tensor = self.block(self.down(pixels))
        return halved


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.before = nn.GroupNorm(_GROUPS, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.between = nn.GroupNorm(_GROUPS, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        inner = self.first(F.silu(self.before(states)))
        inner = self.second(F.silu(self.between(inner)))
        mixed: torch.Tensor = states + inner
        return mixed
