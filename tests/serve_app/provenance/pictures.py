"""Pictures for tests of marks: like photographs, flat, and at the extremes."""

import cv2
import numpy as np

from deployments.engine.types import Pixels


def photograph(seed: int, height: int, width: int, strength: float = 60.0) -> Pixels:
    """Coloured noise of all sizes, the coarser the stronger, as in photographs."""
    generator = np.random.default_rng(seed)
    picture = np.full((height, width, 3), generator.uniform(60, 190, 3), np.float32)
    for octave in range(2, 8):
        noise = generator.normal(0, strength / octave**1.5, (2**octave, 2**octave, 3)).astype(np.float32)
        picture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(picture, 0, 255).astype(np.uint8)


def flat(red: int, green: int, blue: int, height: int = 256, width: int = 256) -> Pixels:
    return np.full((height, width, 3), (red, green, blue), np.uint8)


EXTREMES: dict[str, Pixels] = {
    **{
        name: flat(*(255 * int(digit) for digit in name.split()[-1]))
        for name in (
            "black 000",
            "red 100",
            "green 010",
            "blue 001",
            "cyan 011",
            "magenta 101",
            "yellow 110",
            "white 111",
        )
    },
    # of all colours these two have the least and the largest U; edges run through blocks
    "stripes": np.where(np.arange(256)[None, :, None] % 12 < 6, flat(255, 255, 0), flat(0, 0, 255)),
    "checkers": np.where(np.add(*np.mgrid[:256, :256])[..., None] % 2 == 0, flat(255, 255, 0), flat(0, 0, 255)),
    "noise": np.random.default_rng(1).choice(np.array([0, 255], np.uint8), (256, 256, 3)),
}
