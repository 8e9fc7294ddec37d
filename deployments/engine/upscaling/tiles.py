"""The parts in which a picture goes through a model that only looks around each pixel.

Each part sees more than it answers for, so that what it answers is what the whole picture would have given. All are of
one shape where the picture is larger than a part, so that they can share batches. Pure arithmetic.
"""

from dataclasses import dataclass
from typing import NamedTuple


class Span(NamedTuple):
    """Pixels of one side of a picture: from start, up to end."""

    start: int
    end: int

    def times(self, scale: int) -> slice:
        """The same pixels of a picture so many times as large."""
        return slice(self.start * scale, self.end * scale)


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of a picture. rows, columns: what it sees. own_rows, own_columns: what it answers for."""

    rows: Span
    columns: Span
    own_rows: Span
    own_columns: Span


def tiles_of(height: int, width: int, *, tile: int, overlap: int) -> list[Tile]:
    """Row by row. tile: height and width of what a part sees; overlap: how much of that is its neighbours', each side.

    What the parts answer for is the whole picture, each pixel once.
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
