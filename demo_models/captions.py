"""Says a scene in many ways, and reads such a sentence back.

`caption` and `parse` agree: what one says, the other reads. Knows no pixels and no tokens.
"""

from __future__ import annotations

import random
import re

from demo_models.scenes import COLORS, SHAPES, Scene, SceneObject

SIZE_WORDS = {
    "small": ("small", "small", "small", "tiny", "little"),
    "medium": ("", "", "", "", "medium"),
    "large": ("large", "large", "large", "big", "huge"),
}
TEXTURE_WORDS = {"plain": ("",), "checkered": ("checkered", "checkered", "checkerboard")}
PLACE_WORDS = {
    "left": ("on the left", "at the left", "on the left side"),
    "right": ("on the right", "at the right", "on the right side"),
    "top": ("at the top", "on top"),
    "bottom": ("at the bottom", "on the bottom"),
    "center": ("in the center", "in the middle"),
}
OPENINGS = ("a picture of ", "a drawing of ", "an image of ", "a photo of ", "a painting of ")
_PAIRS = ("{a} and {b}", "{a} and {b}", "{a} with {b}", "{a} next to {b}", "{a}, {b}", "{a} beside {b}")
_SIDES = (
    "{a} on the left and {b} on the right",
    "{a} to the left of {b}",
    "{a} left of {b}",
    "{b} to the right of {a}",
    "{b} right of {a}",
    "{b} on the right and {a} on the left",
)
_STACKS = (
    "{a} above {b}",
    "{a} at the top and {b} at the bottom",
    "{b} below {a}",
    "{b} under {a}",
    "{a} over {b}",
    "{b} at the bottom and {a} at the top",
)
_TRIPLES = (
    "{a}, {b} and {c}",
    "{a}, {b}, {c}",
    "{a} and {b} and {c}",
    "{a} on the left, {b} in the center and {c} on the right",
)


def _with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _named(rng: random.Random, item: SceneObject) -> str:
    size, texture = rng.choice(SIZE_WORDS[item.size]), rng.choice(TEXTURE_WORDS[item.texture])
    return _with_article(" ".join(word for word in (size, texture, item.color, item.shape) if word))


def _arranged(rng: random.Random, scene: Scene) -> str:
    names = [_named(rng, item) for item in scene.objects]
    if len(names) == 1:
        place = scene.objects[0].place
        silent = place == "center" and rng.random() < 0.6
        return names[0] if silent else f"{names[0]} {rng.choice(PLACE_WORDS[place])}"
    if len(names) == 2:
        pattern = rng.choice(_STACKS) if scene.vertical else rng.choice(_PAIRS if rng.random() < 0.5 else _SIDES)
        return pattern.format(a=names[0], b=names[1])
    return rng.choice(_TRIPLES).format(a=names[0], b=names[1], c=names[2])


def caption(scene: Scene, rng: random.Random) -> str:
    """One of the sentences that mean `scene`."""
    words = _arranged(rng, scene)
    ground = scene.background
    place = rng.random()
    if place < 0.55:
        words += f" on {_with_article(ground)} background"
    elif place < 0.75:
        words += f", {ground} background"
    elif place < 0.83:
        words += f" on {ground}"
    elif place < 0.90:
        words += f" over {_with_article(ground)} background"
    elif place < 0.95:
        words += f" in front of {_with_article(ground)} background"
    else:
        words = f"{ground} background, {words}"
    return rng.choice(OPENINGS) + words if rng.random() < 0.2 else words


_SIZE_OF = {word: size for size, words in SIZE_WORDS.items() for word in words if word}
_OBJECT = re.compile(
    rf"(?:an? )?(?:(?P<size>{'|'.join(_SIZE_OF)}) )?(?:(?P<texture>checkered|checkerboard) )?"
    rf"(?P<color>{'|'.join(COLORS)}) (?P<shape>{'|'.join(SHAPES)})"
)
_GROUND = re.compile(rf"\b(?:(?P<a>{'|'.join(COLORS)}) background|on (?P<b>{'|'.join(COLORS)})$)")
_PLACES = {
    "left": r"(?:on|at) the left",
    "right": r"(?:on|at) the right",
    "top": r"(?:at the|on) top",
    "bottom": r"(?:on|at) the bottom",
    "center": r"in the (?:center|middle)",
}
_SWAPPED = re.compile(r"#2.*#1|^#1 (?:to the )?right of|^#1 (?:below|under)|^#1 (?:on|at) the (?:right|bottom)")
_VERTICAL = re.compile(r"above|below|under|#\d over #|\btop\b|\bbottom\b")


def parse(text: str) -> Scene:
    """The scene a caption means; ValueError when it is not one of ours."""
    text = " ".join(text.lower().split())
    ground = _GROUND.search(text)
    found = list(_OBJECT.finditer(text))
    if ground is None or not 1 <= len(found) <= 3:
        raise ValueError(f"not a caption of a demo scene: {text!r}")
    count = iter(range(1, 4))
    frame = _OBJECT.sub(lambda _: f"#{next(count)}", text)
    frame = frame[frame.index("#1") :]
    if len(found) == 1:
        places = [next((p for p, words in _PLACES.items() if re.search(words, frame)), "center")]
    elif len(found) == 2:
        places = ["top", "bottom"] if _VERTICAL.search(frame) else ["left", "right"]
        if _SWAPPED.search(frame):
            found.reverse()
    else:
        places = ["left", "center", "right"]
    objects = tuple(
        SceneObject(
            match["shape"],
            match["color"],
            _SIZE_OF.get(match["size"] or "", "medium"),
            place,
            "checkered" if match["texture"] else "plain",
        )
        for match, place in zip(found, places, strict=True)
    )
    return Scene(ground["a"] or ground["b"], objects)
