"""The numbers that draw an image, which a request, a job, a lane, its snapshot and the manifest have in common.

Each of their classes inherits DenoisingParameters, and `parameters()` passes the numbers from one to the next. So a new
number is declared here, and copied nowhere by name.
"""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class SamplerOptions:
    """Numbers of a request that some samplers have; others leave them alone.

    Attributes:
        eta: how much of each step's noise is drawn anew (arXiv:2010.02502); None for the sampler's own.
        s_churn, s_tmin, s_tmax: how much noise is added before each step between two noise levels (arXiv:2206.00364,
            algorithm 2); None for no upper one.
        s_noise: what all that noise is multiplied with.
    """

    eta: float | None = None
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float | None = None
    s_noise: float = 1.0


# what samplers do by themselves
OWN_OPTIONS = SamplerOptions()


@dataclass(frozen=True, slots=True)
class FreeU:
    """Factors of what a UNet's way up takes (arXiv:2309.11497): of its first level, and of its second.

    Attributes:
        s1, s2: of the low frequencies of skip connections.
        b1, b2: of half of the channels from below.
    """

    s1: float = 1.0
    s2: float = 1.0
    b1: float = 1.0
    b2: float = 1.0


NO_FREEU = FreeU()


@dataclass(frozen=True, kw_only=True)
class DenoisingParameters:
    """How an image is denoised.

    Attributes:
        seed: of the CPU generator that draws the noise; 0 <= seed < 2**63.
        steps: the sampler's inference steps, before denoising_start, denoising_end or a strength cuts the schedule.
        guidance_scale: classifier-free guidance (arXiv:2207.12598); <= 1 means none, and takes one UNet row.
        guidance_rescale: 0..1, how far the guided output is rescaled to the standard deviation of the unguided one
            (arXiv:2305.08891, 3.4).
        guidance_start, guidance_end: fractions of the whole schedule's inference steps between which there is guidance
            (arXiv:2404.07724); a step outside takes one UNet row.
        width, height: pixels, multiples of 8.
        sampler: a canonical name of samplers/registry.py.
        eta, s_churn, s_tmin, s_tmax, s_noise: as in SamplerOptions.
        variation_seed, variation_strength: of a second noise, and how far the seed's own is turned towards it, 0..1.
        noise_width, noise_height: pixels, multiples of 8, of an image whose noise is put into the middle of this one's;
            0 for none.
        tiling: whether the picture goes on at its other side.
        freeu_s1, freeu_s2, freeu_b1, freeu_b2: as in FreeU; 1 for none.
        noise_seed_delta: added to the seed for what a sampler draws; 0 for going on with the first noise's generator.
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
    eta: float | None = None
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float | None = None
    s_noise: float = 1.0
    variation_seed: int = 0
    variation_strength: float = 0.0
    noise_width: int = 0
    noise_height: int = 0
    noise_seed_delta: int = 0
    tiling: bool = False
    freeu_s1: float = 1.0
    freeu_s2: float = 1.0
    freeu_b1: float = 1.0
    freeu_b2: float = 1.0

    @property
    def freeu(self) -> FreeU:
        """Of its UNet."""
        return FreeU(self.freeu_s1, self.freeu_s2, self.freeu_b1, self.freeu_b2)

    @property
    def sampler_options(self) -> SamplerOptions:
        """Of its sampler."""
        return SamplerOptions(self.eta, self.s_churn, self.s_tmin, self.s_tmax, self.s_noise)

    def parameters(self) -> dict[str, Any]:
        """These numbers by name, without the fields of subclasses."""
        return {field.name: getattr(self, field.name) for field in fields(DenoisingParameters)}
