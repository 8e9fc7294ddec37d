"""Looks at a picture and says whether it shows a scene: the judge of every demo checkpoint.

Works on pixels alone; knows no models. `Scene` and `captions.parse` make the scene to ask about::

    score_image(picture, parse("a red circle on the left and a yellow square on the right, blue background")).right
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform, label, maximum_filter1d, minimum_filter1d

from demo_models.drawing import CHECK, CONTOUR, Picture, contour_tone, second_tone, shape_mask
from demo_models.scenes import COLORS, SHAPES, SIZES, Scene, SceneObject, distance

Mask = NDArray[np.bool_]
Pixels = NDArray[np.float64]

PALETTE: Pixels = np.array(list(COLORS.values()), dtype=np.float64)
TEMPLATE = 48
"""Side of the square in which shapes are compared."""
SPREAD = 2.2
"""That side, in roots of a shape's area: the widest shape's reach."""
STRAY = 0.12
"""How far a shape's middle may lie from its place, as a share of the side."""
SPECK = 0.002
"""Regions smaller than this share of the picture hold no shape."""

ALIKE = 0.7
"""The overlap with a template, as a share of their union, from which on a mask is that shape."""
STAIN = 0.08
"""Parts smaller than this share of the largest one are no part of a shape, nor a shape too many."""


@dataclass(frozen=True, slots=True)
class ObjectScore:
    """Which of the words about one shape are true."""

    color: bool = False
    shape: bool = False
    size: bool = False
    place: bool = False
    texture: bool = False
    """Checkered or not, as asked; and contoured or striped where the style asks for it."""


@dataclass(frozen=True, slots=True)
class SceneScore:
    """Which of the words about a scene are true."""

    background: bool
    objects: tuple[ObjectScore, ...]

    @property
    def named(self) -> bool:
        """Background, colours and shapes are as asked, whatever the textures."""
        return self.background and all(o.color and o.shape for o in self.objects)

    @property
    def right(self) -> bool:
        """And so are the textures."""
        return self.named and all(o.texture for o in self.objects)

    @property
    def exact(self) -> bool:
        """And so are sizes and places."""
        return self.right and all(o.size and o.place for o in self.objects)


def score_image(image: Picture, scene: Scene, style: str = "plain") -> SceneScore:
    """Compare an RGB picture (height x width x 3, uint8) with what `scene` asks for."""
    pixels = image.astype(np.float64)
    ground = _ground(pixels)
    objects = tuple(_score(pixels, ground, scene, number, style) for number in range(len(scene.objects)))
    return SceneScore(_nearest(ground) == scene.background, objects)


def _ground(pixels: Pixels) -> Pixels:
    """The median colour of a band near the border."""
    height, width = pixels.shape[:2]
    wide = max(3, min(height, width) // 40)
    band = np.ones((height, width), dtype=np.bool_)
    band[2 * wide : -2 * wide, 2 * wide : -2 * wide] = False
    band[:wide] = band[-wide:] = False
    band[:, :wide] = band[:, -wide:] = False
    middle: Pixels = np.median(pixels[band], axis=0)
    return middle


def _nearest(color: Pixels) -> str:
    return list(COLORS)[int(((PALETTE - color) ** 2).sum(axis=1).argmin())]


def _region(scene: Scene, number: int, height: int, width: int) -> tuple[slice, slice]:
    """The part of the picture in which a shape stands: all, a half or a third."""
    count = len(scene.objects)
    if scene.vertical:
        return slice(number * height // 2, (number + 1) * height // 2), slice(0, width)
    return slice(0, height), slice(number * width // count, (number + 1) * width // count)


def _score(pixels: Pixels, ground: Pixels, scene: Scene, number: int, style: str) -> ObjectScore:
    item = scene.objects[number]
    height, width = pixels.shape[:2]
    shorter = min(height, width)
    rows, columns = _region(scene, number, height, width)
    patch = pixels[rows, columns]
    textured = item.texture == "checkered" or style == "stripes"
    contrast = distance(item.color, scene.background)
    limit = 30.0 if textured or style == "outline" else max(28.0, 0.4 * contrast)
    mask: Mask = np.sqrt(((pixels - ground) ** 2).sum(axis=2)) > limit
    # A decoder's first and last pixels are often off, and no shape reaches them.
    rim = max(2, shorter // 80)
    mask[:rim] = mask[-rim:] = mask[:, :rim] = mask[:, -rim:] = False
    mask = mask[rows, columns]
    if textured:
        gap = np.array(second_tone(COLORS[item.color])) - ground
        gaps = float(np.sqrt((gap**2).sum())) < 2 * limit
        mask = _closed(mask, round(CHECK * shorter) if gaps else max(1, shorter // 85))
    mask = _without_specks(mask)
    if mask.sum() < SPECK * height * width:
        return ObjectScore()
    box = _box(mask)
    radius = float(np.sqrt(mask.sum() / _unit_area(item.shape))) / shorter
    wanted = {size: share * scene.radius(item) / SIZES[item.size] for size, share in SIZES.items()}
    size = min(wanted, key=lambda name: abs(wanted[name] - radius))
    x = (columns.start + (box[1].start + box[1].stop) / 2) / width
    y = (rows.start + (box[0].start + box[0].stop) / 2) / height
    at = _expected(scene, item)
    border = round(CONTOUR * scene.radius(item) * shorter) + 1 if style == "outline" else max(1, shorter // 85)
    inside = _shrunk(mask, border)
    if not inside.any():
        inside = mask
    color, two_tone, rows_pure = _look(patch, inside, textured)
    if item.texture == "checkered":
        texture = two_tone and not rows_pure
    else:
        texture = two_tone and rows_pure if style == "stripes" else not two_tone
    if style == "outline":
        rim = mask & ~_shrunk(mask, max(1, border // 2))
        tone = np.array(contour_tone(item.color, scene.background))
        texture = texture and float(np.abs(np.median(patch[rim], axis=0) - tone).max()) < 70
    return ObjectScore(
        color=color == item.color,
        shape=_shape(mask) == item.shape,
        size=size == item.size,
        place=bool(abs(x - at[0]) < STRAY and abs(y - at[1]) < STRAY),
        texture=texture,
    )


def _without_specks(mask: Mask) -> Mask:
    """Keep the connected parts that are no small stain beside the largest one."""
    parts, count = label(mask)
    if count < 2:
        return mask
    areas = np.bincount(parts.ravel())
    areas[0] = 0
    kept: Mask = (areas > STAIN * areas.max())[parts]
    return kept


def _shrunk(mask: Mask, by: int) -> Mask:
    """The mask without a rim of `by` pixels."""
    return _filtered(minimum_filter1d, np.pad(mask, by), 2 * by + 1)[by:-by, by:-by]


def _closed(mask: Mask, reach: int) -> Mask:
    """Fill the gaps that cells of the background's colour, or blurred edges of cells, leave in a textured shape."""
    grown = _filtered(maximum_filter1d, np.pad(mask, reach), reach | 1)
    return _filtered(minimum_filter1d, grown, reach | 1)[reach:-reach, reach:-reach]


def _filtered(filter1d: Callable[..., NDArray[np.uint8]], mask: Mask, size: int) -> Mask:
    return filter1d(filter1d(mask.astype(np.uint8), size, axis=0), size, axis=1) > 0


def _box(mask: Mask) -> tuple[slice, slice]:
    rows, columns = np.nonzero(mask)
    return slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)


def _expected(scene: Scene, item: SceneObject) -> tuple[float, float]:
    edge = min(scene.radius(item), 0.5)
    x, y = (min(max(part, edge), 1 - edge) for part in scene.anchor(item))
    return x, y


def _look(patch: Pixels, inside: Mask, textured: bool) -> tuple[str, bool, bool]:
    """The colour inside a shape, whether it has a second tone, and whether each row has only one."""
    seen = patch[inside]
    if textured:
        fits = {name: np.minimum(*_distances(seen, name)).mean() for name in COLORS}
        color = min(fits, key=lambda name: float(fits[name]))
    else:
        color = _nearest(np.median(seen, axis=0))
    plain, tone = _distances(patch.reshape(-1, 3), color)
    second = (tone < plain).reshape(inside.shape)
    share = second[inside].mean()
    if not 0.15 < share < 0.85:
        return color, False, True
    counts = inside.sum(axis=1)
    shares = (second & inside).sum(axis=1)[counts > 3] / counts[counts > 3]
    return color, True, bool(np.abs(shares - 0.5).mean() > 0.33)


def _distances(seen: Pixels, name: str) -> tuple[Pixels, Pixels]:
    color = COLORS[name]
    one, other = np.array(color), np.array(second_tone(color))
    return np.sqrt(((seen - one) ** 2).sum(axis=1)), np.sqrt(((seen - other) ** 2).sum(axis=1))


def _normal(mask: Mask) -> Mask:
    """The shape moved to the middle and scaled to a common area, whatever its place and size.

    By centre and area, which all of its pixels decide: a bounding box hangs on the outermost few, and a diamond
    whose tips are a little blunt fills its box like a circle.
    """
    rows, columns = np.nonzero(mask)
    scale = float(np.sqrt(mask.sum())) * SPREAD / TEMPLATE
    offset = np.array([rows.mean(), columns.mean()]) - scale * (TEMPLATE - 1) / 2
    square = (TEMPLATE, TEMPLATE)
    seen = affine_transform(mask.astype(np.float32), np.array([scale, scale]), offset, square, order=1)
    normal: Mask = seen > 0.5
    return normal


@cache
def _templates() -> dict[str, tuple[Mask, float]]:
    """Each shape at the common area, and its area at radius 1."""
    radius = 100
    found = {}
    for shape in SHAPES:
        mask = shape_mask(shape, (128, 128), radius, (256, 256))
        found[shape] = (_normal(mask), float(mask.sum()) / radius**2)
    return found


def _unit_area(shape: str) -> float:
    return _templates()[shape][1]


def _shape(mask: Mask) -> str | None:
    """The shape that the mask is most like, if it is much like any: half of one, say, is none."""
    seen = _normal(mask)

    def overlap(shape: str) -> float:
        template = _templates()[shape][0]
        return float((seen & template).sum() / (seen | template).sum())

    best = max(SHAPES, key=overlap)
    return best if overlap(best) >= ALIKE else None
