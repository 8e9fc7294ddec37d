"""The watermark `dwt-dct-svd`, which the package invisible-watermark reads as its method dwtDctSvd: bits in pixels.

Of the picture in YUV the channel U is marked. Its averages of 2 x 2 pixels, doubled, are the low band of a Haar wavelet
transform. Blocks of 4 x 4 of these, thus of 8 x 8 pixels, hold one bit each: block number n, counted row by row, holds
bit n modulo the length of the word. The bit is in the block's largest singular value, modulo 36: 9 is 0, 27 is 1. (The
package takes the singular values of the block's cosine transform. That is orthogonal, so they are the block's own.)

Differences to the package: it always moves the value within its interval of 36, we move it to the nearest place that
says the bit; it rounds the whole picture through YUV, we add what the mark needs to blue and green, so that red and the
luminance stay, or to red and green where blue has no room; and we make the mark weaker where it would be too strong.

Source: Navas et al., "DWT-DCT-SVD based watermarking", COMSWARE 2008; invisible-watermark 0.2.0.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from deployments.engine.types import Pixels
from serve_app.provenance.watermark_payload import Bits, SoftWord

cv2.setNumThreads(1)  # requests already run in parallel

BLOCK = 8
"""Edge of the pixels that hold one bit."""

LEAST_PSNR = 40.0
"""Of a marked picture to the picture, in dB. Where the mark would be stronger, it is made weaker as a whole."""

_SCALE = np.float32(36)
# Red, green and blue by U: so that red and luminance stay, and, where blue has no room, with the least change of both
# others. The squares of their sums are what a change costs.
_BY_BLUE = np.array([0, -0.395, 2.032], np.float32)
_BY_YELLOW = np.array([-1.4, -2.75, 0], np.float32)
# The largest singular value of a block of U, whose least value is 17, is far above the second: one round has float32's
# precision on photographs, two on edges between the extremes.
_ROUNDS = 2

# Blue within this of 0 and 255 has no room for a change towards it. What has room makes up for the rest of its block,
# if it is at least this share.
_MARGIN = 8
_LEAST_SHARE = np.float32(0.25)
# A block whose value is as near to a place for its bit says it already: it stays if a change costs more than this.
_NEAR_ENOUGH, _MOST_COST, _NOT_SAID = np.float32(6), np.float32(1200), np.float32(1e9)

# What rounding may add to a mark that is made weaker.
_WEAKER = 0.99

# Rows of blocks at a time: what they need stays in the processor's cache.
_STRIP = 16

# Bits of a word that may be corrected in a picture as it is, scaled, and cut. The more words are tried, the fewer.
_CORRECTED, _CORRECTED_SCALED, _CORRECTED_CUT = 16, 10, 6

# Originals' sides are multiples of the first number; common ones of the second, or by a factor of these away.
_SIZE_STEP, _COMMON_STEP = 8, 64
_FACTORS = (0.75, 0.5, 2 / 3, 0.8, 1.25, 4 / 3, 1.5, 2.0, 0.25)
# of all originals together that a picture is scaled back to: half a second
_MOST_PIXELS = 64 << 20

# Of a cut picture: as much of the original's width may be missing. Its grid is looked for in a window of this edge, in
# the middle; the likeliest places, and the likeliest widths of each, are read.
_MOST_CUT = 0.12
_WINDOW = 256
_PLACES, _WIDTHS = 6, 2

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Change:
    """What U needs of 2 x 2 pixels each, (rows, columns): by blue, and by yellow where blue has no room."""

    by_blue: Floats
    by_yellow: Floats | None = None

    def of(self, channel: int) -> Floats | None:
        """The change of red, green or blue; None if it stays."""
        blue: Floats = np.asarray(self.by_blue * _BY_BLUE[channel], np.float32)
        yellow = self.by_yellow
        if yellow is None:
            return blue if _BY_BLUE[channel] else None
        return np.asarray(blue + yellow * _BY_YELLOW[channel], np.float32)


def room(pixels: Pixels) -> int:
    """How many bits a picture holds."""
    height, width, _ = pixels.shape
    return int(height // BLOCK) * int(width // BLOCK)


def embed(pixels: Pixels, bits: Bits) -> Pixels:
    """A copy of the picture that holds the bits as often as it has room, at least LEAST_PSNR near to it.

    Args:
        pixels: (height, width, 3), uint8, RGB.
        bits: (length,), 0 or 1.
    """
    rows, columns = pixels.shape[0] // BLOCK, pixels.shape[1] // BLOCK
    marked = pixels.copy()
    if not rows * columns:
        return marked
    strips = [
        (slice(row * BLOCK, min(row + _STRIP, rows) * BLOCK), slice(columns * BLOCK)) for row in range(0, rows, _STRIP)
    ]
    words = [np.roll(bits, -row * columns) for row in range(0, rows, _STRIP)]
    changes = [_change(pixels[strip], word) for strip, word in zip(strips, words, strict=True)]
    allowed, strength = pixels.size * 255**2 / 10 ** (LEAST_PSNR / 10), 1.0
    while True:
        for strip, change in zip(strips, changes, strict=True):
            marked[strip] = _changed(pixels[strip], change, strength)
        error = cv2.norm(marked, pixels, cv2.NORM_L2SQR)
        if error <= allowed:
            return marked
        strength *= _WEAKER * (allowed / error) ** 0.5


def _change(strip: Pixels, word: Bits) -> _Change:
    """What writes a bit into each block of whole rows of blocks."""
    rows, columns = strip.shape[0] // BLOCK, strip.shape[1] // BLOCK
    bits = np.resize(word, rows * columns)
    values, left, right = _top_singular(_blocks(_u_of(strip)))
    aim = _SCALE * (np.float32(0.25) + np.float32(0.5) * bits)
    change: Floats = np.asarray((aim - values + _SCALE / 2) % _SCALE - _SCALE / 2, np.float32)

    def plane(change: Floats) -> Floats:
        # U is half of the low band
        cells = ((left * (change / 2))[:, None] * right[None]).reshape(4, 4, rows, columns)
        return np.ascontiguousarray(cells.transpose(2, 0, 3, 1), np.float32).reshape(rows * 4, columns * 4)

    blue = strip[..., 2]
    if blue.min() >= _MARGIN and blue.max() < 256 - _MARGIN:
        return _Change(plane(change))
    change, by_yellow = _within_room(change, strip, left, right)
    return _Change(plane(np.where(by_yellow, 0, change)), plane(np.where(by_yellow, change, 0)))


def _changed(strip: Pixels, change: _Change, strength: float) -> Pixels:
    """The strip with a share of a change."""
    thresholds = np.tile(_DITHER, (strip.shape[0] // BLOCK, strip.shape[1] // BLOCK))
    changed = strip.copy()
    for channel in range(3):
        plane = change.of(channel)
        if plane is not None:
            large = cv2.resize(plane, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
            rounded = cv2.addWeighted(large, strength, thresholds, 1, 0)
            # OpenCV rounds and clips
            changed[..., channel] = cv2.add(np.ascontiguousarray(strip[..., channel]), rounded, dtype=cv2.CV_8U)
    return changed


def read(pixels: Pixels, length: int) -> Iterator[SoftWord]:
    """What the picture may hold, the likeliest first: as it is, scaled, or cut.

    Args:
        pixels: (height, width, 3), uint8, RGB.
        length: of the word.
    """
    plane = _u_of(pixels)
    yield SoftWord(_votes(_phases(plane), plane.shape[1] // BLOCK, length), corrected=_CORRECTED)
    for height, width in _originals(*plane.shape):
        scaled = _scaled(plane, height, width)
        yield SoftWord(_votes(_phases(scaled), width // BLOCK, length), corrected=_CORRECTED_SCALED)
    middle = [slice(max(0, (side - _WINDOW) // 2 // BLOCK * BLOCK), None) for side in plane.shape]
    window = plane[tuple(middle)][:_WINDOW, :_WINDOW]
    corners = itertools.product(range(BLOCK), repeat=2)
    places = sorted(corners, key=lambda place: -_coherence(_phases(window[place[0] :, place[1] :])))
    for top, left in places[:_PLACES]:
        phases = _phases(plane[top:, left:])
        widths = range(phases.shape[1], int(phases.shape[1] / (1 - _MOST_CUT)) + 2)
        votes = [_votes(phases, width, length) for width in widths]
        for clear in sorted(votes, key=lambda votes: -float(np.abs(votes - votes.mean()).mean()))[:_WIDTHS]:
            yield SoftWord(clear, corrected=_CORRECTED_CUT, rotated=True)


def _originals(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Sizes (height, width) that a picture of this size may be scaled from, the likeliest first."""
    by_factor = [round(width / factor / _SIZE_STEP) * _SIZE_STEP for factor in _FACTORS]
    steps = range(-(-width // 2 // _COMMON_STEP) * _COMMON_STEP, width * 2 + 1, _COMMON_STEP)
    common = sorted(steps, key=lambda original: abs(np.log(original / width)))
    pixels = 0
    for original in dict.fromkeys([*by_factor, *common]):
        factor = original / width
        exact = height * factor
        other = round(exact / _SIZE_STEP) * _SIZE_STEP
        # each side of the scaled picture was rounded, by half a pixel at most
        if not other or (other, original) == (height, width) or abs(other - exact) > factor * (1 + height / width):
            continue
        if pixels + other * original <= _MOST_PIXELS:
            pixels += other * original
            yield other, original


def _scaled(plane: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(plane, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def _u_of(pixels: Pixels) -> NDArray[np.uint8]:
    return np.ascontiguousarray(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2YUV)[..., 1])


def _phases(plane: NDArray[np.uint8]) -> Floats:
    """The largest singular values of the blocks in turns of the scale, (rows, columns)."""
    rows, columns = plane.shape[0] // BLOCK, plane.shape[1] // BLOCK
    if not rows * columns:
        return np.zeros((rows, columns), np.float32)
    strips = [plane[row * BLOCK : min(row + _STRIP, rows) * BLOCK, : columns * BLOCK] for row in range(0, rows, _STRIP)]
    values = np.concatenate([_top_singular(_blocks(strip))[0] for strip in strips])
    return np.asarray(values / _SCALE, np.float32).reshape(rows, columns)


def _votes(phases: Floats, columns: int, length: int) -> NDArray[np.float32]:
    """The votes of blocks, of a picture that had `columns` of them."""
    rows, present = phases.shape
    numbers = (np.arange(rows)[:, None] * columns + np.arange(present)) % length
    sums = np.bincount(numbers.ravel(), -np.sin(2 * np.pi * phases).ravel(), length)
    counts = np.bincount(numbers.ravel(), minlength=length)
    return (sums / np.sqrt(np.maximum(counts, 1) / 2)).astype(np.float32)


def _coherence(phases: Floats) -> float:
    """How near the values are to places that say a bit, whichever."""
    return float(-np.cos(4 * np.pi * phases).sum() / np.sqrt(max(phases.size, 1)))


def _blocks(plane: NDArray[np.uint8]) -> Floats:
    """The low band of the Haar transform in blocks: (4, 4, blocks)."""
    rows, columns = plane.shape[0] // BLOCK, plane.shape[1] // BLOCK
    pairs = np.add(plane[0::2], plane[1::2], dtype=np.uint16)
    band = np.multiply(pairs[:, 0::2] + pairs[:, 1::2], np.float32(0.5), dtype=np.float32)
    return np.ascontiguousarray(band.reshape(rows, 4, columns, 4).transpose(1, 3, 0, 2)).reshape(4, 4, rows * columns)


def _top_singular(blocks: Floats) -> tuple[Floats, Floats, Floats]:
    """The largest singular value of each block (blocks,) and its vectors (4, blocks), by power iteration."""
    right = np.full((4, blocks.shape[2]), 0.5, np.float32)
    for _ in range(_ROUNDS):
        right = np.einsum("ijn,in->jn", blocks, np.einsum("ijn,jn->in", blocks, right))
        right /= np.sqrt(np.einsum("jn,jn->n", right, right))
    left = np.einsum("ijn,jn->in", blocks, right)
    values = np.sqrt(np.einsum("in,in->n", left, left))
    return values, left / values, right


def _within_room(change: Floats, strip: Pixels, left: Floats, right: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """The changes of blocks' singular values, (blocks,), that colours have room for, and which of them yellow makes.

    Each block gets the cheapest of: the change by blue or by yellow, the change by blue to the next place on the other
    side, which says the same, and none.
    """
    red, green, blue = (_blocks(np.ascontiguousarray(strip[..., channel])) * np.float32(0.5) for channel in range(3))
    up, down = (
        [_share(has_room(colour), left, right) for colour in (red, green, blue)]
        for has_room in (lambda colour: colour < 256 - _MARGIN, lambda colour: colour >= _MARGIN)
    )
    rises = change > 0
    turned: Floats = np.asarray(change - _SCALE * np.sign(change), np.float32)
    of_red, of_green, _ = _BY_YELLOW**2 / (_BY_YELLOW**2).sum()
    # U rises where yellow falls
    yellow = np.where(rises, of_red * down[0] + of_green * down[1], of_red * up[0] + of_green * up[1])
    ways: list[tuple[Floats, Floats, Floats]] = [
        (change, np.where(rises, up[2], down[2]), _BY_BLUE),
        (change, yellow, _BY_YELLOW),
        (turned, np.where(rises, down[2], up[2]), _BY_BLUE),
    ]
    costs = [
        np.where(share < _LEAST_SHARE, np.inf, way**2 * (weights**2).sum() / np.maximum(share, _LEAST_SHARE))
        for way, share, weights in ways
    ]
    staying = np.where(np.abs(change) <= _NEAR_ENOUGH, _MOST_COST, _NOT_SAID)
    choice = np.argmin([*costs, staying], axis=0)
    changes = [way / np.maximum(share, _LEAST_SHARE) for way, share, _ in ways]
    return np.choose(choice, [*changes, np.zeros_like(change)]), choice == 1


def _share(room: NDArray[np.bool_], left: Floats, right: Floats) -> Floats:
    """The share of each block's change, (blocks,), that falls where `room`, (4, 4, blocks), is."""
    shares: Floats = np.einsum("in,in->n", left**2, np.einsum("ijn,jn->in", room.astype(np.float32), right**2))
    return shares


def _bayer(order: int) -> Floats:
    """What ordered dithering adds before it rounds, (2 ** order, 2 ** order), evenly spread over -0.5..0.5."""
    matrix = np.zeros((1, 1), np.float32)
    for _ in range(order):
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    return ((matrix + 0.5) / matrix.size - 0.5).astype(np.float32)


# So that the average of a block's rounded pixels is what it should be.
_DITHER = _bayer(3)
