"""What a VAE's decode takes, and the decode itself, as it is compiled. Knows diffusers' AutoencoderKL; no lanes."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL

from deployments.engine.compile.graph_inputs import GraphInputs


@dataclass(frozen=True, slots=True, eq=False)
class DecodeInputs(GraphInputs):
    """latents: (images, channels, height, width) as the VAE takes them, unscaled and in its type."""

    latents: torch.Tensor

    @property
    def kind(self) -> tuple[object, ...]:
        """What differs among the decodes of one VAE."""
        return (self.latents.shape,)


class VaeDecode(torch.nn.Module):
    """In one piece, whatever the VAE is set to."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures (images, 3, height, width) from -1 to 1, in the VAE's type."""
        decoded: torch.Tensor = self.vae.decode(latents, return_dict=False)[0]
        return decoded
