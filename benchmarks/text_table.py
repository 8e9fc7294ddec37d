"""Aligned tables for a terminal, with nothing installed."""

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart; a column is right-aligned where all of its cells start with a digit or are empty."""
    columns = list(zip(*([header, *rows]), strict=True))
    lines = []
    numeric = [all(not cell or cell[0].isdigit() or cell == "-" for cell in column[1:]) for column in columns]
    widths = [max(map(len, column)) for column in columns]
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
