"""The largest images that a stage's memory holds, and the refusal of larger ones.

No torch here, because the front refuses requests by these numbers before they become jobs. plan.py computes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from deployments.engine.batch import bucket_for
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
        several: in a step of four rows and of eight, of an image with several prompts.
    """

    unguided: int
    guided: int
    reproducible: int
    decoded: int
    several: Mapping[int, int] = field(default_factory=dict)

    def check(self, request: DenoiseRequest) -> None:
        """Raise DoesNotFit, naming the longer side, for an image that the memory can't hold in any batch."""
        checkpoint, width, height = request.checkpoint, request.width, request.height
        guided = self.guided if request.guidance_scale > 1 else self.unguided
        most = self.reproducible if request.reproducible else guided
        rows = request.composed_prompts + (request.guidance_scale > 1)
        most = min(most, self.several.get(bucket_for(rows), most))
        # encoding an image takes about what decoding it takes; where one is only announced, its strength is there
        encodes = request.image is not None or request.strength is not None
        if encodes or request.output == "image":
            most = min(most, self.decoded)
        if width * height <= most:
            return
        prompts = "" if request.composed_prompts == 1 else f" with {request.composed_prompts} prompts"
        if not most:
            raise DoesNotFit(f"model {checkpoint!r}{prompts} doesn't fit the memory of its stage at any size", "model")
        field, value = ("width", width) if width >= height else ("height", height)
        side = int(most**0.5) // 8 * 8
        raise DoesNotFit(
            f"{field} is {value}: an image of {width} x {height}{prompts} doesn't fit the memory of the stage of "
            f"{checkpoint!r}: at most {most} pixels fit, such as {side} x {side}",
            field,
        )
