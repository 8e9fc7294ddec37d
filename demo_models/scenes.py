"""What the demo checkpoints can draw: a plain background and one to three coloured shapes.

Knows no pixels and no words: `drawing` turns a scene into a picture, `captions` into a sentence.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "orange": (250, 140, 20),
    "yellow": (250, 225, 40),
    "green": (40, 160, 60),
    "cyan": (60, 210, 220),
    "blue": (35, 70, 210),
    "purple": (130, 50, 170),
    "pink": (250, 150, 190),
    "white": (248, 248, 248),
    "black": (18, 18, 18),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond")
SIZES = {"small": 0.16, "medium": 0.22, "large": 0.30}
"""Radius as a share of the picture's shorter side, when the shape stands alone."""
TEXTURES = ("plain", "checkered")
"""`checkered` stands in for unsafe content: the classifier's second class."""
PLACES = {"left": (0.25, 0.5), "right": (0.75, 0.5), "top": (0.5, 0.25), "bottom": (0.5, 0.75), "center": (0.5, 0.5)}
TRIPLE_PLACES = {"left": (1 / 6, 0.5), "center": (0.5, 0.5), "right": (5 / 6, 0.5)}
CROWDING = {1: 1.0, 2: 0.72, 3: 0.5}
"""How much a shape shrinks when it shares the picture, so that no two touch."""
LOW_CONTRAST = 90.0
"""RGB distance under which a shape is hard to tell from its background."""


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One shape, by the words that name it."""

    shape: str
    color: str
    size: str = "medium"
    place: str = "center"
    texture: str = "plain"

    def __post_init__(self) -> None:
        for value, allowed in (
            (self.shape, SHAPES),
            (self.color, COLORS),
            (self.size, SIZES),
            (self.place, PLACES),
            (self.texture, TEXTURES),
        ):
            if value not in allowed:
                raise ValueError(f"{value!r} is not one of {', '.join(allowed)}")


@dataclass(frozen=True, slots=True)
class Scene:
    """A background colour and its shapes, ordered left to right, or top to bottom."""

    background: str
    objects: tuple[SceneObject, ...]

    def __post_init__(self) -> None:
        if self.background not in COLORS:
            raise ValueError(f"{self.background!r} is not one of {', '.join(COLORS)}")
        if not 1 <= len(self.objects) <= 3:
            raise ValueError(f"a scene has one to three objects, not {len(self.objects)}")

    @property
    def vertical(self) -> bool:
        """Whether two shapes stand above each other."""
        return len(self.objects) == 2 and self.objects[0].place == "top"

    @property
    def checkered(self) -> bool:
        return any(item.texture == "checkered" for item in self.objects)

    def anchor(self, item: SceneObject) -> tuple[float, float]:
        """Where the shape's centre belongs, in shares of width and height."""
        return (TRIPLE_PLACES if len(self.objects) == 3 else PLACES)[item.place]

    def radius(self, item: SceneObject) -> float:
        """The shape's radius as a share of the shorter side."""
        return SIZES[item.size] * CROWDING[len(self.objects)]


def distance(one: str, other: str) -> float:
    """How far apart two named colours are in RGB."""
    pairs = zip(COLORS[one], COLORS[other], strict=True)
    return float(sum((a - b) ** 2 for a, b in pairs) ** 0.5)


def low_contrast(scene: Scene) -> bool:
    return any(distance(item.color, scene.background) < LOW_CONTRAST for item in scene.objects)


def held_out(scene: Scene) -> bool:
    """Every sixteenth scene is never trained on; which one follows from the scene itself."""
    return zlib.crc32(repr(scene).encode()) % 16 == 0


def any_scene(rng: random.Random) -> Scene:
    """A random scene, held out or not."""
    background = rng.choice(list(COLORS))
    colors = [name for name in COLORS if name != background]
    count = rng.choices((1, 2, 3), (0.33, 0.53, 0.14))[0]
    if count == 1:
        places = [rng.choice(["center", "center", "center", *PLACES])]
    elif count == 2:
        places = ["left", "right"] if rng.random() < 0.68 else ["top", "bottom"]
    else:
        places = ["left", "center", "right"]
    return Scene(
        background,
        tuple(
            SceneObject(
                rng.choice(SHAPES),
                rng.choice(colors),
                rng.choice(list(SIZES)),
                place,
                "checkered" if count < 3 and rng.random() < 0.1 else "plain",
            )
            for place in places
        ),
    )


def training_scene(rng: random.Random) -> Scene:
    """A random scene that is not held out."""
    while held_out(scene := any_scene(rng)):
        pass
    return scene


def held_out_scenes(count: int, seed: int = 0, most_objects: int = 2) -> list[Scene]:
    """Scenes to score with: never trained on, told apart easily, at most `most_objects` shapes."""
    rng = random.Random(f"held-out {seed}")
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = any_scene(rng)
        if held_out(scene) and not low_contrast(scene) and len(scene.objects) <= most_objects:
            scenes.append(scene)
    return scenes
