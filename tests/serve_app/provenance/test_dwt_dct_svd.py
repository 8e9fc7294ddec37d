import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imwatermark import WatermarkDecoder, WatermarkEncoder

from deployments.engine.types import Pixels
from serve_app.provenance import dwt_dct_svd
from serve_app.provenance.dwt_dct_svd import _blocks, _top_singular, _u_of
from tests.serve_app.provenance.pictures import EXTREMES, flat, photograph

BITS = np.random.default_rng(7).integers(0, 2, 80).astype(np.uint8)
PICTURES = {
    "photograph": photograph(1, 512, 512),
    "odd sizes": photograph(2, 333, 301),
    "flat": flat(90, 120, 200),
    "grey": np.repeat(photograph(3, 256, 256, 30)[..., :1], 3, axis=2),
}


def psnr(picture: Pixels, other: Pixels) -> float:
    return float(10 * np.log10(255**2 / np.mean((picture.astype(np.float64) - other) ** 2)))


def read_by_package(pixels: Pixels, bits: int) -> np.ndarray:
    return WatermarkDecoder("bits", bits).decode(np.ascontiguousarray(pixels[..., ::-1]), "dwtDctSvd")


def marked_by_package(pixels: Pixels, bits: np.ndarray) -> Pixels:
    encoder = WatermarkEncoder()
    encoder.set_watermark("bits", bits.tolist())
    return encoder.encode(np.ascontiguousarray(pixels[..., ::-1]), "dwtDctSvd")[..., ::-1]


@pytest.mark.parametrize("name", PICTURES)
def test_invisible_watermark_reads_our_bits(name: str) -> None:
    marked = dwt_dct_svd.embed(PICTURES[name], BITS)
    np.testing.assert_array_equal(read_by_package(marked, 80), BITS)


@pytest.mark.parametrize("name", EXTREMES)
def test_invisible_watermark_reads_our_bits_at_the_extremes(name: str) -> None:
    marked = dwt_dct_svd.embed(EXTREMES[name], BITS)
    np.testing.assert_array_equal(read_by_package(marked, 80), BITS)


@pytest.mark.parametrize("name", PICTURES)
def test_we_read_the_bits_of_invisible_watermark(name: str) -> None:
    marked = marked_by_package(PICTURES[name], BITS)
    votes = next(dwt_dct_svd.read(marked, 80)).votes
    np.testing.assert_array_equal(votes - votes.mean() > 0, BITS)


@pytest.mark.parametrize("bits", [32, 48, 100])
def test_words_of_other_lengths(bits: int) -> None:
    word = np.random.default_rng(bits).integers(0, 2, bits).astype(np.uint8)
    marked = dwt_dct_svd.embed(PICTURES["photograph"], word)
    np.testing.assert_array_equal(next(dwt_dct_svd.read(marked, bits)).votes > 0, word)
    np.testing.assert_array_equal(read_by_package(marked, bits), word)


@pytest.mark.parametrize("name", PICTURES)
def test_the_mark_is_not_seen(name: str) -> None:
    picture = PICTURES[name]
    marked = dwt_dct_svd.embed(picture, BITS)
    assert psnr(picture, marked) >= 40
    np.testing.assert_array_equal(marked[..., 0], picture[..., 0])
    change = marked.astype(np.float64) - picture
    assert np.abs(change @ [0.299, 0.587, 0.114]).max() <= 1.0  # luminance, but for rounding
    assert np.abs(change).max() <= 11  # 18 of the singular value are 2.25 of U over a flat block; more where it is not


def hard_picture(height: int, width: int, colours: list[int], kind: str, seed: int) -> Pixels:
    """A picture of two colours, r g b r g b: flat, in halves, mixed pixel by pixel, or one fading into the other."""
    first, second = np.array(colours, np.float64).reshape(2, 3)
    generator = np.random.default_rng(seed)
    shares = {
        "flat": np.zeros((height, width)),
        "halves": np.broadcast_to(np.arange(width) >= seed % max(width, 1), (height, width)).astype(np.float64),
        "noise": generator.integers(0, 2, (height, width)).astype(np.float64),
        "gradient": np.broadcast_to(np.linspace(0, 1, height)[:, None], (height, width)),
    }[kind][..., None]
    return np.rint(first * (1 - shares) + second * shares).astype(np.uint8)


# where marks are strongest: at the ends of the scale
COLOUR_PARTS = st.one_of(st.sampled_from([0, 255]), st.integers(0, 12), st.integers(243, 255), st.integers(0, 255))


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    colours=st.lists(COLOUR_PARTS, min_size=6, max_size=6),
    kind=st.sampled_from(["flat", "halves", "noise", "gradient"]),
    seed=st.integers(0, 2**32 - 1),
    length=st.sampled_from([1, 32, 80]),
)
def test_no_mark_is_stronger_than_40_db(
    height: int, width: int, colours: list[int], kind: str, seed: int, length: int
) -> None:
    picture = hard_picture(height, width, colours, kind, seed)
    bits = np.random.default_rng(seed).integers(0, 2, length).astype(np.uint8)
    marked = dwt_dct_svd.embed(picture, bits)
    error = float(np.mean((marked.astype(np.float64) - picture) ** 2))
    assert error <= 255**2 / 1e4


def test_a_mark_that_would_be_too_strong_is_made_weaker() -> None:
    # one bit alone, of a flat colour: each block needs the same change, of 18
    marks = [
        (picture, dwt_dct_svd.embed(picture, np.array([bit], np.uint8)))
        for blue in range(100, 160)
        for bit in (0, 1)
        for picture in [flat(90, 120, blue)]
    ]
    assert min(psnr(picture, marked) for picture, marked in marks) < 40.2
    for bit, (_, marked) in zip([0, 1] * 60, marks, strict=True):
        assert read_by_package(marked, 1).tolist() == [bit]


@pytest.mark.parametrize("name", EXTREMES)
def test_at_the_extremes_only_what_has_no_room_otherwise_changes_luminance(name: str) -> None:
    picture = EXTREMES[name]
    marked = dwt_dct_svd.embed(picture, BITS)
    change = marked.astype(np.float64) - picture
    assert psnr(picture, marked) >= 40
    assert np.abs(change @ [0.299, 0.587, 0.114]).mean() <= 2.5


def test_the_picture_given_stays_as_it_is() -> None:
    picture = PICTURES["odd sizes"].copy()
    picture.flags.writeable = False
    marked = dwt_dct_svd.embed(picture, BITS)
    assert marked.flags.writeable
    np.testing.assert_array_equal(marked[328:], picture[328:])  # no whole block there
    np.testing.assert_array_equal(marked[:, 296:], picture[:, 296:])


@pytest.mark.parametrize("name", [*PICTURES, *EXTREMES])
def test_the_largest_singular_value_is_exact(name: str) -> None:
    plane = _u_of({**PICTURES, **EXTREMES}[name])
    blocks = _blocks(plane[: plane.shape[0] // 8 * 8, : plane.shape[1] // 8 * 8])
    values, left, right = _top_singular(blocks)
    reference = np.linalg.svd(blocks.transpose(2, 0, 1).astype(np.float64), compute_uv=False)[:, 0]
    np.testing.assert_allclose(values, reference, rtol=2e-3)
    np.testing.assert_allclose(np.einsum("in,ijn,jn->n", left, blocks, right), reference, rtol=2e-3)


def test_originals_of_a_large_picture_are_bounded() -> None:
    for height, width in [(4096, 4096), (16, 1 << 20), (1 << 20, 16), (1, 1), (1024, 1024)]:
        sizes = list(dwt_dct_svd._originals(height, width))
        assert sum(rows * columns for rows, columns in sizes) <= 64 << 20
