"""A contact sheet: the images of a matrix in rows and columns, with labels, page under page."""

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from deployments.engine.errors import InvalidRequest

_PAPER, _INK, _EMPTY, _FAINT = "white", "black", "#e6e6e6", "#606060"

_GAP = 4
_FONT_PX = 13
_LINE_PX = 17
# lines of a label at most; and the width of a row's labels
_MOST_LINES, _SIDE_PX = 3, 120

_SMALLEST_CELL = 16


@dataclass(frozen=True, slots=True)
class SheetLayout:
    """What is where.

    Attributes:
        columns, rows: their labels.
        pages: the title of each page; one of no title without further axes.
        cell: width and height of a cell in pixels.
    """

    columns: Sequence[str]
    rows: Sequence[str]
    pages: Sequence[str]
    cell: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Of the sheet, in pixels."""
        width = self._left + len(self.columns) * (self.cell[0] + _GAP) + _GAP
        return width, len(self.pages) * self._page_height

    @property
    def _left(self) -> int:
        return _SIDE_PX + _GAP if any(self.rows) else _GAP

    @property
    def _title_height(self) -> int:
        return _LINE_PX + _GAP if any(self.pages) else 0

    @property
    def _top(self) -> int:
        return self._title_height + _MOST_LINES * _LINE_PX + _GAP

    @property
    def _page_height(self) -> int:
        return self._top + len(self.rows) * (self.cell[1] + _GAP) + _GAP

    def corner(self, page: int, row: int, column: int) -> tuple[int, int]:
        """Left and top of a cell."""
        top = page * self._page_height + self._top + row * (self.cell[1] + _GAP)
        return self._left + column * (self.cell[0] + _GAP), top


def layout(
    columns: Sequence[str], rows: Sequence[str], pages: Sequence[str], size: tuple[int, int], side: int, max_pixels: int
) -> SheetLayout:
    """The layout whose cells have the shape of an image of `size`, at most `side` pixels long, smaller if need be.

    Raises InvalidRequest if the sheet has more than `max_pixels` even so.
    """
    for longest in range(side, _SMALLEST_CELL - 1, -4):
        scale = longest / max(size)
        cell = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
        sheet = SheetLayout(columns, rows, pages, cell)
        if math.prod(sheet.size) <= max_pixels:
            return sheet
    raise InvalidRequest(f"the contact sheet has more than {max_pixels} pixels even with the smallest pictures", "side")


class ContactSheet:
    """A sheet that is being filled."""

    def __init__(self, sheet: SheetLayout) -> None:
        self._layout = sheet
        self._font = ImageFont.load_default(_FONT_PX)
        self._picture = Image.new("RGB", sheet.size, _PAPER)
        self._draw = ImageDraw.Draw(self._picture)
        for page, title in enumerate(sheet.pages):
            left, top = sheet.corner(page, 0, 0)
            for column, label in enumerate(sheet.columns):
                x = sheet.corner(page, 0, column)[0]
                self._text((x, top - _MOST_LINES * _LINE_PX - _GAP), label, sheet.cell[0], _INK)
            for row, label in enumerate(sheet.rows):
                self._text((_GAP, sheet.corner(page, row, 0)[1]), label, _SIDE_PX, _INK)
            if title:
                title_top = top - _MOST_LINES * _LINE_PX - _LINE_PX - 2 * _GAP
                self._text((left, title_top), title, sheet.size[0] - left, _INK, lines=1)

    def put(self, page: int, row: int, column: int, file: bytes | None, note: str = "") -> None:
        """Put an image file into a cell, or a note where there is none."""
        left, top = self._layout.corner(page, row, column)
        width, height = self._layout.cell
        if file is None:
            self._draw.rectangle((left, top, left + width - 1, top + height - 1), fill=_EMPTY)
            self._text((left + _GAP, top + _GAP), note, width - 2 * _GAP, _FAINT)
            return
        with Image.open(io.BytesIO(file)) as image:
            image.draft("RGB", (width, height))
            small = image.convert("RGB")
            small.thumbnail((width, height), Image.Resampling.LANCZOS)
        self._picture.paste(small, (left + (width - small.width) // 2, top + (height - small.height) // 2))

    def to_png(self) -> bytes:
        """The sheet as a PNG file."""
        file = io.BytesIO()
        self._picture.save(file, "PNG")
        return file.getvalue()

    def _text(self, at: tuple[int, int], text: str, width: int, colour: str, lines: int = _MOST_LINES) -> None:
        """Write a text into a width, in a few lines, cut where it is longer."""
        for number, line in enumerate(_wrapped(text, width, lines, self._font.getlength)):
            self._draw.text((at[0], at[1] + number * _LINE_PX), line, fill=colour, font=self._font)


def _wrapped(text: str, width: int, most: int, length: Callable[[str], float]) -> list[str]:
    """A text in lines that are so wide at most; the last one ends with an ellipsis if there is more."""
    rest = " ".join(text.split())
    lines: list[str] = []
    while rest and len(lines) < most:
        fits = next((count for count in range(len(rest), 0, -1) if length(rest[:count]) <= width), 0)
        if fits == 0:
            break
        if fits < len(rest) and len(lines) == most - 1:
            lines.append(rest[: max(0, fits - 1)] + "…")
            break
        if fits < len(rest) and " " in rest[: fits + 1]:
            fits = rest.rindex(" ", 0, fits + 1)
        lines.append(rest[:fits])
        rest = rest[fits:].lstrip()
    return lines
