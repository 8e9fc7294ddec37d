"""A lane's beginning: its first random draws, its first latents, and what it keeps of the request's image."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import interpolate

from deployments.engine.denoising.denoiser import Denoiser
from deployments.engine.errors import InvalidRequest
from deployments.engine.lanes.lane import NO_IMAGE, LaneImage
from deployments.engine.samplers.tables import SamplerTable
from deployments.engine.types import LATENT_SCALE, MASKED, DenoiseRequest, LatentUpscaler, Pixels

# diffusers and A1111 resize latents as torch does: (mode, antialias)
_RESIZES: Mapping[LatentUpscaler, tuple[str, bool]] = {
    "latent": ("bilinear", False),
    "latent_antialiased": ("bilinear", True),
    "latent_bicubic": ("bicubic", False),
    "latent_bicubic_antialiased": ("bicubic", True),
    "latent_nearest": ("nearest", False),
    "latent_nearest_exact": ("nearest-exact", False),
}


def begin(
    request: DenoiseRequest,
    table: SamplerTable,
    shape: tuple[int, int, int],
    denoiser: Denoiser,
    generator: torch.Generator,
) -> tuple[LaneImage, torch.Tensor]:
    """What the lane keeps of its image, and its latents before the first step: (channels, height, width), float32.

    Args:
        request: of the lane.
        table: the sampler's coefficients.
        shape: of the latents, (channels, height, width).
        denoiser: encodes the image.
        generator: the lane's; not drawn from if the lane goes on from `latents` or from a snapshot, whose own latents
            replace those returned here.

    Raises:
        InvalidRequest: the request's latents are missing or have another shape.
        NumericalFailure: the encoded image isn't finite.
    """
    hand_over = request.latents is not None and request.enlarge is None
    if request.resume is None and not hand_over:
        if request.denoising_start > 0:
            raise InvalidRequest("denoising_start goes on from the latents of the stage before", "denoising_start")
        drawn = _draw(request, shape, denoiser, generator, needs_latents=True)
        return drawn.image, _first_latents(request, table, drawn)
    if request.resume is None and request.latents is not None and request.latents.shape != shape:
        raise InvalidRequest(f"latents of shape {request.latents.shape}, expected {shape}", "latents")
    # the draws of the first stage's beginning, of a generator that isn't the lane's: that one goes on where it was
    first = generator_for(request.seed, None if request.denoising_start > 0 else request.generator_state)
    image = _draw(request, shape, denoiser, first).image
    if request.resume is not None or request.latents is None:
        return image, torch.empty(shape, dtype=torch.float32)
    return image, torch.from_numpy(np.array(request.latents, dtype=np.float32))


def check_images(request: DenoiseRequest) -> None:
    """Raise InvalidRequest for an image or a mask that hasn't the request's width and height."""
    size = request.height, request.width
    if request.mask is not None and request.image is None:
        raise InvalidRequest("a mask needs the image that it is of", "mask")
    for field, array, expected in (("image", request.image, (*size, 3)), ("mask", request.mask, size)):
        if array is not None and (array.shape != expected or array.dtype != np.uint8):
            raise InvalidRequest(f"{field} is {array.dtype} {array.shape}, expected uint8 {expected}", field)


def generator_for(seed: int, state: Pixels | None = None) -> torch.Generator:
    """A CPU generator, so that a seed means the same on every device, with the `state` of another one if there is."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    if state is not None:
        generator.set_state(torch.from_numpy(np.array(state, dtype=np.uint8)))
    return generator


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A lane's first draws, on the device.

    Attributes:
        image: what the lane keeps of the request's image.
        noise: (channels, height, width), float32.
        clean: likewise, the image's latents; None if they aren't needed.
    """

    image: LaneImage
    noise: torch.Tensor
    clean: torch.Tensor | None


def _draw(
    request: DenoiseRequest,
    shape: tuple[int, int, int],
    denoiser: Denoiser,
    generator: torch.Generator,
    *,
    needs_latents: bool = False,
) -> _Drawn:
    """The lane's first draws, in the order of diffusers' pipelines: for the image, the noise, the masked image.

    `needs_latents` draws for the lane's first latents too, not only for what it keeps of the image.
    """
    mask, picture = request.mask, request.image
    device = denoiser.device
    if not (needs_latents or mask is not None or denoiser.takes_hints):
        return _Drawn(NO_IMAGE, torch.empty(0), None)
    repaints = mask is not None and not denoiser.takes_hints
    # diffusers' inpainting pipelines don't encode an image of which nothing will be seen
    seen = mask is None or repaints or request.strength not in (None, 1.0)
    clean = denoiser.vae.encode(picture, generator) if picture is not None and seen else None
    if request.enlarge is not None:
        clean = _enlarged(request, shape, request.enlarge).to(device)
    noise = _draw_noise(generator, *shape).to(device)
    if denoiser.takes_hints:
        return _Drawn(LaneImage(hint=_hint(request, denoiser, generator)), noise, clean)
    if mask is None or clean is None:
        return _Drawn(NO_IMAGE, noise, clean)
    _draw_noise(generator, *shape)  # for the image with a hole: drawn there too, though only hints need it
    return _Drawn(LaneImage(_latent_mask(mask).to(device), clean, noise), noise, clean)


def _enlarged(request: DenoiseRequest, shape: tuple[int, int, int], upscaler: LatentUpscaler) -> torch.Tensor:
    """A finished picture's latents, resized to `shape`."""
    if request.latents is None or request.latents.ndim != 3 or len(request.latents) != shape[0]:
        raise InvalidRequest(f"there are no latents of {shape[0]} channels to enlarge", "latents")
    if request.strength is None:
        raise InvalidRequest("enlarged latents need a strength", "strength")
    return _resized(torch.from_numpy(np.array(request.latents, dtype=np.float32)), *shape[1:], upscaler)


def _hint(request: DenoiseRequest, denoiser: Denoiser, generator: torch.Generator) -> torch.Tensor:
    """An inpainting UNet's further input channels; without a mask everything is painted anew."""
    size = request.height, request.width
    mask = np.full(size, 255, np.uint8) if request.mask is None else request.mask
    picture = np.zeros((*size, 3), np.uint8) if request.image is None else request.image
    latents = denoiser.vae.encode(picture, generator, without=mask)
    return torch.cat([_latent_mask(mask).to(latents.device), latents])


def _first_latents(request: DenoiseRequest, table: SamplerTable, drawn: _Drawn) -> torch.Tensor:
    wholly_new = request.mask is not None and request.strength in (None, 1.0)
    if drawn.clean is None or wholly_new:
        return drawn.noise * table.init_noise_sigma
    return table.start_sample * drawn.clean + table.start_noise * drawn.noise


def _draw_noise(generator: torch.Generator, channels: int, height: int, width: int) -> torch.Tensor:
    """Standard normal noise (channels, height, width), float32, on the CPU, as diffusers' `randn_tensor` draws it."""
    return torch.randn((channels, height, width), generator=generator, dtype=torch.float32)


def _resized(latents: torch.Tensor, height: int, width: int, upscaler: LatentUpscaler) -> torch.Tensor:
    """Latents (channels, h, w) resized to (channels, height, width), in latent cells."""
    mode, antialias = _RESIZES[upscaler]
    return interpolate(latents[None], size=(height, width), mode=mode, antialias=antialias)[0]


def _latent_mask(mask: Pixels) -> torch.Tensor:
    """(1, height / 8, width / 8), float32, of a mask (height, width): 1 where it is painted anew, else 0.

    As in diffusers: made black and white first, then each cell takes its nearest pixel.
    """
    return torch.from_numpy(mask[::LATENT_SCALE, ::LATENT_SCALE] >= MASKED).float()[None]
