"""Draws a scene as a picture, in one of three styles.

The same scene, size, style and random state give the same pixels. Knows no captions and no models.
"""

from __future__ import annotations

import math
import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import minimum_filter1d

from demo_models.scenes import COLORS, Scene, SceneObject

Picture = NDArray[np.uint8]
"""Height x width x RGB."""
Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels; the last two are beyond."""

STYLES = ("plain", "outline", "stripes")
CHECK = 1 / 16
"""A checker's edge as a share of the shorter side: two latent cells at 256 px."""
STRIPE = 1 / 16
CONTOUR = 0.14
"""A contour's width as a share of the shape's radius."""
OVERSAMPLING = 2
DARK = 100
"""Luminance that tells red, purple, blue and black from the others, whatever their jitter."""
RING_HOLE = 0.5
WANDER = {1: 0.035, 2: 0.015, 3: 0.008}
"""How far a shape may stray from its anchor, as a share of the side."""


def _heart() -> list[tuple[float, float]]:
    angles = [2 * math.pi * i / 40 for i in range(40)]
    return [
        (
            math.sin(a) ** 3 * 16 / 17,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 17,
        )
        for a in angles
    ]


def _star() -> list[tuple[float, float]]:
    tips = [(1.0 if i % 2 == 0 else 0.42, i * math.pi / 5) for i in range(10)]
    return [(r * math.sin(a), -r * math.cos(a)) for r, a in tips]


def _cross(arm: float = 0.34, end: float = 0.95) -> list[tuple[float, float]]:
    quarter = [(-arm, -end), (arm, -end), (arm, -arm)]
    corners = []
    for _ in range(4):
        corners += quarter
        quarter = [(-y, x) for x, y in quarter]
    return corners


POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "diamond": [(0, -1), (0.75, 0), (0, 1), (-0.75, 0)],
    "triangle": [(0, -0.95), (0.95, 0.75), (-0.95, 0.75)],
    "star": _star(),
    "cross": _cross(),
    "heart": _heart(),
}


def shape_mask(shape: str, center: tuple[float, float], radius: float, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of a (height, width) canvas that a shape covers."""
    image = Image.new("1", (size[1], size[0]))
    pen = ImageDraw.Draw(image)
    x, y = center

    def disc(r: float, fill: int) -> None:
        pen.ellipse([x - r, y - r, x + r, y + r], fill=fill)

    if shape == "circle":
        disc(0.95 * radius, 1)
    elif shape == "ring":
        disc(radius, 1)
        disc(RING_HOLE * radius, 0)
    else:
        pen.polygon([(x + u * radius, y + v * radius) for u, v in POLYGONS[shape]], fill=1)
    return np.asarray(image, dtype=np.bool_)


def second_tone(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """The other colour of a checkered or striped shape: a dark shade, or a light one of the dark ones."""
    red, green, blue = color
    if 0.3 * red + 0.59 * green + 0.11 * blue > DARK:
        return (red * 35 // 100, green * 35 // 100, blue * 35 // 100)
    return (red + (255 - red) * 55 // 100, green + (255 - green) * 55 // 100, blue + (255 - blue) * 55 // 100)


def contour_tone(color: str, background: str) -> tuple[int, int, int]:
    """Black, or white or grey where black would not show."""
    names = {color, background}
    if "black" not in names:
        return (18, 18, 18)
    return (248, 248, 248) if "white" not in names else (128, 128, 128)


def _jittered(rng: random.Random, color: tuple[int, int, int], by: int = 8) -> tuple[int, int, int]:
    red, green, blue = (max(0, min(255, part + rng.randint(-by, by))) for part in color)
    return (red, green, blue)


def _placed(rng: random.Random, scene: Scene, item: SceneObject) -> tuple[float, float, float]:
    """Centre in shares of width and height, and radius in shares of the shorter side, a little off the mark."""
    radius = scene.radius(item) * rng.uniform(0.94, 1.06)
    wander = WANDER[len(scene.objects)]
    edge = min(radius + 0.01, 0.5)
    x, y = (min(max(part + rng.uniform(-wander, wander), edge), 1 - edge) for part in scene.anchor(item))
    return x, y, radius


def _paint(canvas: Picture, scene: Scene, item: SceneObject, rng: random.Random, style: str) -> Box:
    """Paint one shape; returns the box around it."""
    height, width = canvas.shape[:2]
    shorter = min(height, width)
    share_x, share_y, share_r = _placed(rng, scene, item)
    x, y, radius = share_x * width, share_y * height, share_r * shorter
    fill = _jittered(rng, COLORS[item.color])
    reach = math.ceil(radius) + 2
    top, left = max(0, int(y) - reach), max(0, int(x) - reach)
    bottom, right = min(height, int(y) + reach), min(width, int(x) + reach)
    mask = shape_mask(item.shape, (x - left, y - top), radius, (bottom - top, right - left))
    patch = canvas[top:bottom, left:right]
    patch[mask] = fill
    rows, columns = np.mgrid[top:bottom, left:right]
    if item.texture == "checkered":
        cell = CHECK * shorter
        odd = (np.floor((rows - y) / cell) + np.floor((columns - x) / cell)) % 2 == 1
        patch[mask & odd] = second_tone(fill)
    elif style == "stripes":
        odd = np.floor((rows - y) / (STRIPE * shorter) + 0.5) % 2 == 1
        patch[mask & odd] = second_tone(fill)
    if style == "outline":
        width_px = 2 * round(CONTOUR * radius) + 1
        padded = np.pad(mask, 1).astype(np.uint8)
        inner = minimum_filter1d(minimum_filter1d(padded, width_px, axis=0), width_px, axis=1)[1:-1, 1:-1]
        patch[mask & (inner == 0)] = contour_tone(item.color, scene.background)
    across, down = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return left + across[0], top + down[0], left + across[-1] + 1, top + down[-1] + 1


def draw(scene: Scene, height: int, width: int, rng: random.Random, style: str = "plain") -> Picture:
    """The scene as pixels; `rng` decides the small shifts and shades that no caption names."""
    return draw_boxed(scene, height, width, rng, style)[0]


def draw_boxed(
    scene: Scene, height: int, width: int, rng: random.Random, style: str = "plain"
) -> tuple[Picture, list[Box]]:
    """As `draw`, with the box around each shape."""
    if style not in STYLES:
        raise ValueError(f"{style!r} is not one of {', '.join(STYLES)}")
    background = _jittered(rng, COLORS[scene.background])
    canvas = np.empty((height * OVERSAMPLING, width * OVERSAMPLING, 3), dtype=np.uint8)
    canvas[:] = background
    boxes = [_paint(canvas, scene, item, rng, style) for item in scene.objects]
    picture = np.array(Image.fromarray(canvas).reduce(OVERSAMPLING))
    scaled = np.array(boxes) / OVERSAMPLING
    return picture, [(left, top, right, bottom) for left, top, right, bottom in scaled.tolist()]
