"""The numbers that draw an image: what a request, a job, a lane, its snapshot and the image's manifest have in common.

Each of those is a class that inherits from DenoisingParameters, and one is made of another by `parameters()`. So a new
number is declared here, and nobody copies it by name.
"""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class DenoisingParameters:
    """How an image is denoised.

    seed: of the CPU generator that draws the image's noise; 0 <= seed < 2**63.
    steps: the sampler's number of inference steps, before anything cuts the schedule.
    guidance_scale: classifier-free guidance (arXiv:2207.12598); <= 1 means none, and takes one UNet row.
    guidance_rescale: how far the guided output is brought back to the spread of the unguided one (arXiv:2305.08891,
        3.4), 0..1.
    guidance_start, guidance_end: fractions of the whole schedule's inference steps between which there is guidance
        (arXiv:2404.07724); outside a step takes one UNet row.
    width, height: pixels, multiples of 8.
    sampler: a canonical name of samplers/registry.py.
    """

    seed: int
    steps: int
    guidance_scale: float
    guidance_rescale: float = 0.0
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    width: int
    height: int
    sampler: str

    def parameters(self) -> dict[str, Any]:
        """These numbers by name, without what a class that inherits them adds."""
        return {field.name: getattr(self, field.name) for field in fields(DenoisingParameters)}
