"""Contact sheets: each picture in its cell, labels beside it, never more pixels than allowed."""

import io

import numpy as np
import pytest
from PIL import Image

from deployments.engine.errors import InvalidRequest
from serve_app.images.contact_sheet import ContactSheet, SheetLayout, layout
from tests.serve_app.images.pictures import file_of

MOST = 1 << 24


def of_colour(colour: tuple[int, int, int], size: tuple[int, int] = (64, 32)) -> bytes:
    return file_of(Image.new("RGB", size, colour))


def filled(sheet: SheetLayout) -> Image.Image:
    """Each cell has a colour of its own, but for the last, which has none."""
    paper = ContactSheet(sheet)
    cells = [
        (page, row, column)
        for page in range(len(sheet.pages))
        for row in range(len(sheet.rows))
        for column in range(len(sheet.columns))
    ]
    for page, row, column in cells[:-1]:
        paper.put(page, row, column, of_colour((200, 40 * row, 60 * column + 5 * page)))
    paper.put(*cells[-1], None, "unsafe")
    return Image.open(io.BytesIO(paper.to_png()))


def test_each_picture_is_in_its_cell() -> None:
    sheet = layout(["1", "2", "3"], ["red", "green"], ["a", "b"], (64, 32), 64, MOST)
    assert sheet.cell == (64, 32)
    picture = filled(sheet)
    assert (picture.format, picture.size) == ("PNG", sheet.size)
    for page in range(2):
        for row in range(2):
            for column in range(3):
                left, top = sheet.corner(page, row, column)
                cell = np.asarray(picture.crop((left, top, left + 64, top + 32)))
                if (page, row, column) == (1, 1, 2):
                    assert 0 < np.any(cell != 230, axis=-1).sum() < cell[..., 0].size / 4  # a few words
                else:
                    assert np.all(cell == (200, 40 * row, 60 * column + 5 * page))


def ink(picture: Image.Image, box: tuple[int, int, int, int]) -> int:
    """The dark pixels in a part of a picture."""
    return int((np.asarray(picture.convert("L").crop(box)) < 100).sum())


def test_labels_stand_over_columns_beside_rows_and_over_pages() -> None:
    long = "a very long prompt of many words that goes on and on " * 9
    sheet = layout(["first", long, ""], ["one", ""], ["", "page two"], (64, 64), 64, MOST)
    picture = ContactSheet(sheet).to_png()
    paper = Image.open(io.BytesIO(picture))

    def column_label(column: int) -> int:
        left, top = sheet.corner(0, 0, column)
        return ink(paper, (left, top - 56, left + 64, top - 4))

    assert column_label(0) > 20
    assert column_label(1) > column_label(0)
    assert column_label(2) == 0
    row_labels = [ink(paper, (0, top, 120, top + 60)) for top in (sheet.corner(0, row, 0)[1] for row in range(2))]
    assert row_labels[0] > 20
    assert row_labels[1] == 0
    second_page = sheet.corner(1, 0, 0)[1]
    assert ink(paper, (124, second_page - 82, 300, second_page - 60)) > 20


@pytest.mark.parametrize(("size", "cell"), [((512, 512), (192, 192)), ((512, 256), (192, 96)), ((8, 1024), (2, 192))])
def test_cells_have_the_shape_of_the_pictures(size: tuple[int, int], cell: tuple[int, int]) -> None:
    assert layout(["x"], [""], [""], size, 192, MOST).cell == cell


def test_a_sheet_has_only_so_many_pixels() -> None:
    sheet = layout(["x"] * 100, ["y"] * 100, [""], (512, 512), 192, 5_000_000)
    assert 16 <= sheet.cell[0] < 32
    assert sheet.size[0] * sheet.size[1] <= 5_000_000
    with pytest.raises(InvalidRequest, match="more than 100000 pixels even with the smallest pictures"):
        layout(["x"] * 100, ["y"] * 100, [""], (512, 512), 192, 100_000)
