"""The largest images that a stage's memory holds, and the refusal of larger ones.

No torch here, because the front refuses requests by these numbers before they become jobs. plan.py computes them.
"""

from dataclasses import dataclass

from deployments.engine.errors import DoesNotFit
from deployments.engine.types import DenoiseRequest

CELL = 64  # pixels of one latent cell


@dataclass(frozen=True, slots=True)
class RequestSize:
    """The size of an image: width x height in pixels, with guidance (two rows) or without."""

    pixels: int = CELL * CELL
    guided: bool = False


@dataclass(frozen=True, slots=True)
class AllowedSizes:
    """The sizes of images that a checkpoint may draw; `largest` is None if the settings don't say."""

    smallest: RequestSize = RequestSize()
    largest: RequestSize | None = None


@dataclass(frozen=True, slots=True)
class LargestSizes:
    """The most pixels (width x height) of one image that a checkpoint's stage has memory for; 0 if none fits.

    Attributes:
        unguided: in a step of one row.
        guided: in a step of two rows.
        reproducible: in a step of the fixed bucket.
        decoded: in the VAE, which a stage that hands its latents over doesn't need.
    """

    unguided: int
    guided: int
    reproducible: int
    decoded: int

    def check(self, request: DenoiseRequest) -> None:
        """Raise DoesNotFit, naming the longer side, for an image that the memory can't hold in any batch."""
        checkpoint, width, height = request.checkpoint, request.width, request.height
        guided = self.guided if request.guidance_scale > 1 else self.unguided
        most = self.reproducible if request.reproducible else guided
        # encoding an image takes about what decoding it takes; where one is only announced, its strength is there
        encodes = request.image is not None or request.strength is not None
        if encodes or request.output == "image":
            most = min(most, self.decoded)
        if width * height <= most:
            return
        if not most:
            raise DoesNotFit(f"model {checkpoint!r} doesn't fit the memory of its stage at any size", "model")
        field, value = ("width", width) if width >= height else ("height", height)
        side = int(most**0.5) // 8 * 8
        raise DoesNotFit(
            f"{field} is {value}: an image of {width} x {height} doesn't fit the memory of the stage of "
            f"{checkpoint!r}: at most {most} pixels fit, such as {side} x {side}",
            field,
        )
