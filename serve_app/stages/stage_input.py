"""What a stage begins with, of what the stage before it left.

Pillow only. Scaling takes tens of milliseconds: call it in a thread.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

from deployments.engine.types import DenoiseResult, Pixels
from serve_app.planning.plan import DenoiseStage, HandOver

_RESAMPLING = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}


class Beginning(NamedTuple):
    """Latents, or a picture at the stage's size: uint8 (height, width, 3). Neither where a stage is the first."""

    latents: HandOver | None
    image: Pixels | None


def beginning(stage: DenoiseStage, before: DenoiseResult | None) -> Beginning:
    """before: what the stage before answered, None for the first.

    A second pass draws its noise anew, of the seed, as whoever starts it by hand does; a refiner goes on with the
    random numbers. What a model enlarges is none of these: it goes through a stage of its own.
    """
    if before is None:
        return Beginning(None, None)
    if before.latents is not None:
        return Beginning(HandOver(before.latents, None if stage.hires else before.generator_state), None)
    hires = stage.hires
    if hires is None or before.image is None or hires.model is not None:
        return Beginning(None, None)
    return Beginning(None, scaled(before.image, hires.upscaler, hires.width, hires.height))


def scaled(picture: Pixels, upscaler: str, width: int, height: int) -> Pixels:
    """A picture at another size. upscaler: "lanczos" or "nearest"."""
    return np.array(Image.fromarray(picture).resize((width, height), _RESAMPLING[upscaler]))
