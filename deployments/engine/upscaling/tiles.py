"""The tiles in which a picture goes through a model whose pixels depend on a bounded neighbourhood.

A tile's input is larger than the part of the output that is taken from it, so that the result is the whole picture's.
All have one shape if the picture is larger than a tile, so that they can share batches.
"""

from dataclasses import dataclass
from typing import NamedTuple


class Span(NamedTuple):
    """Pixels of one side of a picture, from `start` up to `end`."""

    start: int
    end: int

    def times(self, scale: int) -> slice:
        """The same pixels of a picture `scale` times as large."""
        return slice(self.start * scale, self.end * scale)


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of a picture: its input, and the `own` part of it that the result is taken from."""

    rows: Span
    columns: Span
    own_rows: Span
    own_columns: Span


def tiles_of(height: int, width: int, *, tile: int, overlap: int) -> list[Tile]:
    """The tiles of a picture, row by row; their own parts cover each pixel once.

    Args:
        height, width: of the picture, in pixels.
        tile: height and width of a tile's input.
        overlap: pixels of it, at each side, that are a neighbour's own.
    """
    columns = _spans(width, tile, overlap)
    return [
        Tile(rows, across, own_rows, own_across)
        for rows, own_rows in _spans(height, tile, overlap)
        for across, own_across in columns
    ]


def _spans(length: int, tile: int, overlap: int) -> list[tuple[Span, Span]]:
    if length <= tile:
        return [(Span(0, length), Span(0, length))]
    starts = [*range(0, length - tile, tile - 2 * overlap), length - tile]
    borders = [0, *(start + overlap for start in starts[1:]), length]
    return [
        (Span(start, start + tile), Span(border, beyond))
        for start, border, beyond in zip(starts, borders, borders[1:], strict=False)
    ]
