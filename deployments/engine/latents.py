"""Noise from seeds, and the VAE's way in and out of latent space.

Knows a loaded VAE; nothing of lanes, batches or samplers.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn.functional import interpolate

from deployments.engine.errors import NumericalFailure
from deployments.engine.request import LATENT_SCALE, MASKED, LatentUpscaler, Pixels

_REMEMBERED = 8  # pictures; 1 MB of posterior each at 1024 x 1024


def generator_for(seed: int, state: Pixels | None = None) -> torch.Generator:
    """A CPU generator, so that a seed means the same on every device; `state` goes on where another one stopped."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    if state is not None:
        generator.set_state(torch.from_numpy(np.array(state, dtype=np.uint8)))
    return generator


def draw_noise(generator: torch.Generator, channels: int, height: int, width: int) -> torch.Tensor:
    """Standard normal (channels, height, width), float32, on the CPU: diffusers' `randn_tensor` for one image."""
    return torch.randn((channels, height, width), generator=generator, dtype=torch.float32)


class ImageEncoder:
    """A VAE's way in, which remembers the last few pictures: the images of one job begin with the same ones."""

    def __init__(self, vae: AutoencoderKL) -> None:
        self._vae = vae
        self._posteriors: OrderedDict[bytes, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()

    def encode(self, image: Pixels, generator: torch.Generator, without: Pixels | None = None) -> torch.Tensor:
        """Scaled latents (channels, height / 8, width / 8), float32, sampled from the VAE's posterior.

        image: uint8 (height, width, 3). without: uint8 (height, width); where it is 128 or more the picture is grey.
        As diffusers' img2img pipelines: one draw of `generator` for the posterior.
        Raises NumericalFailure if the encoder overflows even in float32.
        """
        mean, std = self._posterior(image, without)
        noise = torch.randn(mean.shape, generator=generator, dtype=torch.float32).to(mean.device)
        return _normalise(self._vae, mean + std * noise)[0]

    def _posterior(self, image: Pixels, without: Pixels | None) -> tuple[torch.Tensor, torch.Tensor]:
        digest = hashlib.sha256(repr(image.shape).encode())
        digest.update(image.tobytes())
        if without is not None:
            digest.update((without >= MASKED).tobytes())
        key = digest.digest()
        known = self._posteriors.get(key)
        if known is None:
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float().div(255.0)
            pixels = pixels * 2.0 - 1.0
            if without is not None:
                pixels = pixels * torch.from_numpy(without < MASKED)
            known = self._posteriors[key] = _posterior(self._vae, pixels)
            if len(self._posteriors) > _REMEMBERED:
                self._posteriors.popitem(last=False)
        self._posteriors.move_to_end(key)
        return known


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


def decode_latents(vae: AutoencoderKL, latents: torch.Tensor) -> list[np.ndarray | NumericalFailure]:
    """Images uint8 (height, width, 3) of scaled latents (n, channels, h, w), float32, decoded as one batch.

    An image that overflows in the VAE's type is decoded again, alone and in float32; one that is not finite even so
    is returned as NumericalFailure: never a black image as a success.
    """
    unscaled = _denormalise(vae, latents)
    if _wants_float32(vae):
        decoded = _decode_wide(vae, unscaled)
    else:
        decoded = vae.decode(_like(vae, unscaled), return_dict=False)[0].float()
    finite = torch.isfinite(decoded).flatten(1).all(1).tolist()
    images: list[np.ndarray | NumericalFailure] = []
    for index, good in enumerate(finite):
        image = decoded[index] if good else _decode_wide(vae, unscaled[index : index + 1])[0]
        if not good and not bool(torch.isfinite(image).all()):
            images.append(NumericalFailure("the VAE's decode is not finite, in float32 either"))
            continue
        pixels = (image / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        images.append(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
    return images


def _posterior(vae: AutoencoderKL, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if not _wants_float32(vae):
        posterior = vae.encode(_like(vae, pixels)).latent_dist
        if bool(torch.isfinite(posterior.mean).all()):
            return posterior.mean.float(), posterior.std.float()
    with _in_float32(vae):
        posterior = vae.encode(_like(vae, pixels)).latent_dist
    if not bool(torch.isfinite(posterior.mean).all()):
        raise NumericalFailure("the VAE's encoding of the image is not finite, in float32 either")
    return posterior.mean.float(), posterior.std.float()


def _decode_wide(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    with _in_float32(vae):
        decoded: torch.Tensor = vae.decode(_like(vae, latents), return_dict=False)[0]
    return decoded.float()


@contextmanager
def _in_float32(vae: AutoencoderKL) -> Iterator[None]:
    """The VAE's weights in float32 for a while: exact for weights that came from a narrower type, and back."""
    dtype = vae.dtype
    try:
        vae.to(dtype=torch.float32)
        yield
    finally:  # also where memory ran out half way
        vae.to(dtype=dtype)


def _wants_float32(vae: AutoencoderKL) -> bool:
    """SDXL's own VAE overflows in float16 and says so in its configuration."""
    return vae.dtype == torch.float16 and bool(vae.config.get("force_upcast", False))


def _like(vae: AutoencoderKL, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(device=vae.device, dtype=vae.dtype)


def _normalise(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    mean, std = _moments(vae, latents)
    scaling = float(vae.config.scaling_factor)
    return latents * scaling if mean is None or std is None else (latents - mean) * scaling / std


def _denormalise(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    mean, std = _moments(vae, latents)
    scaling = float(vae.config.scaling_factor)
    return latents / scaling if mean is None or std is None else latents * std / scaling + mean


def _moments(vae: AutoencoderKL, latents: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Per-channel mean and std that some SDXL VAEs carry, (1, channels, 1, 1)."""
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or std is None:
        return None, None
    return latents.new_tensor(mean).view(1, -1, 1, 1), latents.new_tensor(std).view(1, -1, 1, 1)
