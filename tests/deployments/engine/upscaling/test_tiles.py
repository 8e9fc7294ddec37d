"""Pictures are cut so that each pixel is answered for once, and seen with its neighbours."""

import numpy as np
import pytest

from deployments.engine.upscaling.tiles import tiles_of


@pytest.mark.parametrize("size", [(1, 1), (64, 64), (65, 300), (63, 200), (200, 63), (129, 112)])
@pytest.mark.parametrize("overlap", [0, 8, 24])
def test_what_the_tiles_answer_for_is_the_picture(size: tuple[int, int], overlap: int) -> None:
    height, width = size
    answered = np.zeros(size, int)
    for tile in tiles_of(height, width, tile=64, overlap=overlap):
        answered[slice(*tile.own_rows), slice(*tile.own_columns)] += 1
        for seen, own, length in ((tile.rows, tile.own_rows, height), (tile.columns, tile.own_columns, width)):
            assert seen.end - seen.start == min(64, length)
            assert own.start - seen.start >= overlap or own.start == 0
            assert seen.end - own.end >= overlap or own.end == length
    assert (answered == 1).all()


def test_one_shape_where_there_is_room_for_it() -> None:
    tiles = tiles_of(100, 300, tile=64, overlap=8)
    assert len(tiles) == 2 * 6
    assert {(tile.rows.end - tile.rows.start, tile.columns.end - tile.columns.start) for tile in tiles} == {(64, 64)}
    assert len(tiles_of(64, 64, tile=64, overlap=8)) == 1
