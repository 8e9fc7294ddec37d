"""Noise from seeds, latents of another size, and masks as latents have them.

Knows nothing of models, lanes, batches or samplers.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch.nn.functional import interpolate

from deployments.engine.types import LATENT_SCALE, MASKED, LatentUpscaler, Pixels


def generator_for(seed: int, state: Pixels | None = None) -> torch.Generator:
    """A CPU generator, so that a seed means the same on every device; `state` goes on where another one stopped."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    if state is not None:
        generator.set_state(torch.from_numpy(np.array(state, dtype=np.uint8)))
    return generator


def draw_noise(generator: torch.Generator, channels: int, height: int, width: int) -> torch.Tensor:
    """Standard normal (channels, height, width), float32, on the CPU: diffusers' `randn_tensor` for one image."""
    return torch.randn((channels, height, width), generator=generator, dtype=torch.float32)


# diffusers and A1111 resize latents as torch does: (mode, antialias)
_RESIZES: Mapping[LatentUpscaler, tuple[str, bool]] = {
    "latent": ("bilinear", False),
    "latent_antialiased": ("bilinear", True),
    "latent_bicubic": ("bicubic", False),
    "latent_bicubic_antialiased": ("bicubic", True),
    "latent_nearest": ("nearest", False),
    "latent_nearest_exact": ("nearest-exact", False),
}


def enlarged(latents: torch.Tensor, height: int, width: int, upscaler: LatentUpscaler) -> torch.Tensor:
    """Latents (channels, h, w) as those of a picture of another size: (channels, height, width), in cells."""
    mode, antialias = _RESIZES[upscaler]
    return interpolate(latents[None], size=(height, width), mode=mode, antialias=antialias)[0]


def latent_mask(mask: Pixels) -> torch.Tensor:
    """(1, height / 8, width / 8), float32, of a mask (height, width): 1 where it is painted anew, else 0.

    As diffusers does it: made black and white first, then the nearest pixel of each cell.
    """
    return torch.from_numpy(mask[::LATENT_SCALE, ::LATENT_SCALE] >= MASKED).float()[None]
