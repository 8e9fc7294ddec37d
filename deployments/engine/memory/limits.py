"""How large an image may be for the memory of a stage: what a stage tells of itself, and what refuses a request.

Plain numbers and no torch, because the front judges requests by them before they become jobs. plan.py computes them.
"""

from dataclasses import dataclass

from deployments.engine.errors import DoesNotFit
from deployments.engine.types import DenoiseRequest

CELL = 64  # pixels of one latent cell: the grain of what fits


@dataclass(frozen=True, slots=True)
class RequestSize:
    """Of an image: width x height in pixels, with guidance (two rows) or without."""

    pixels: int = CELL * CELL
    guided: bool = False


@dataclass(frozen=True, slots=True)
class AllowedSizes:
    """What a checkpoint may be asked for. largest: None where nobody has said it."""

    smallest: RequestSize = RequestSize()
    largest: RequestSize | None = None


@dataclass(frozen=True, slots=True)
class LargestSizes:
    """Most pixels (width x height) of one image that a checkpoint's stage has memory for; 0 where none fits.

    unguided, guided: for a step of an image alone in its batch, one row or two. reproducible: for a step of the fixed
    bucket. decoded: for the VAE, which a stage that hands its latents over doesn't need.
    """

    unguided: int
    guided: int
    reproducible: int
    decoded: int

    def check(self, request: DenoiseRequest) -> None:
        """Raise DoesNotFit for an image that the memory can't hold in any batch; it names the longer side."""
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
            f"{checkpoint!r}: at most {most} pixels do, {side} x {side} for one",
            field,
        )
