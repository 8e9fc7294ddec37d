"""Previews without a decoder: a linear map from latents to RGB ("latent RGB factors").

It is fitted by least squares when the VAE is loaded, so that it is right for any VAE.
"""

from dataclasses import dataclass

import torch

from deployments.engine.types import Pixels
from deployments.engine.vae.autoencoder import Vae

_TILES = 8  # an 8 x 8 grid of coloured tiles, 16 pixels (two latent cells) each: 256 samples for 15 unknowns


@dataclass(frozen=True, slots=True)
class PreviewMap:
    """rgb = weight @ latents + bias, RGB in 0..1.

    Attributes:
        weight: (3, channels), float32, on the VAE's device.
        bias: (3,), likewise.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def render(self, clean_latents: torch.Tensor) -> Pixels:
        """The preview (h, w, 3), uint8, of estimated clean latents (channels, h, w)."""
        rgb = torch.einsum("oc,chw->hwo", self.weight, clean_latents) + self.bias
        pixels: Pixels = rgb.clamp(0, 1).mul(255).round().to(torch.uint8).cpu().numpy()
        return pixels


def fit_preview_map(vae: Vae) -> PreviewMap:
    """Encode a fixed image of random colour tiles and regress its colours on its latents."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand((_TILES, _TILES, 3), generator=generator)
    pixels = colours.mul(255).to(torch.uint8).repeat_interleave(16, 0).repeat_interleave(16, 1).numpy()
    encoded = vae.encode(pixels, generator)
    latents = encoded.cpu()
    cells = colours.repeat_interleave(2, 0).repeat_interleave(2, 1).reshape(-1, 3)
    samples = torch.cat([latents.flatten(1).T, torch.ones(cells.shape[0], 1)], 1)
    solution = torch.linalg.lstsq(samples, cells).solution
    return PreviewMap(solution[:-1].T.contiguous().to(encoded.device), solution[-1].to(encoded.device))
