"""A lane's beginning: its first random draws, its first latents, and what it keeps of the request's image."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import interpolate

from deployments.engine.denoising.denoiser import Denoiser
from deployments.engine.errors import InvalidRequest
from deployments.engine.lanes.lane import NO_IMAGE, LaneImage
from deployments.engine.samplers.registry import is_webui
from deployments.engine.samplers.tables import SamplerTable
from deployments.engine.types import LATENT_SCALE, MASKED, DenoiseRequest, LatentUpscaler, Pixels
from deployments.engine.vae.autoencoder import Vae

# diffusers and A1111 resize latents as torch does: (mode, antialias)
_RESIZES: Mapping[LatentUpscaler, tuple[str, bool]] = {
    "latent": ("bilinear", False),
    "latent_antialiased": ("bilinear", True),
    "latent_bicubic": ("bicubic", False),
    "latent_bicubic_antialiased": ("bicubic", True),
    "latent_nearest": ("nearest", False),
    "latent_nearest_exact": ("nearest-exact", False),
}

# cosine from which on two noises count as one
_PARALLEL = 0.9995


def begin(
    request: DenoiseRequest,
    table: SamplerTable,
    shape: tuple[int, int, int],
    denoiser: Denoiser,
    vae: Vae,
    generator: torch.Generator,
) -> tuple[LaneImage, torch.Tensor]:
    """What the lane keeps of its image, and its latents before the first step: (channels, height, width), float32.

    Args:
        request: of the lane.
        table: the sampler's coefficients.
        shape: of the latents, (channels, height, width).
        denoiser: of the lane.
        vae: encodes the image.
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
        drawn = _draw(request, shape, denoiser, vae, generator, needs_latents=True)
        if request.noise_seed_delta:
            generator.manual_seed(seed_bits(request.seed + request.noise_seed_delta))
        return drawn.image, _first_latents(request, table, drawn)
    if request.resume is None and request.latents is not None and request.latents.shape != shape:
        raise InvalidRequest(f"latents of shape {request.latents.shape}, expected {shape}", "latents")
    # the draws of the first stage's beginning, of a generator that isn't the lane's: that one goes on where it was
    first = generator_for(request.seed, None if request.denoising_start > 0 else request.generator_state)
    image = _draw(request, shape, denoiser, vae, first).image
    if request.resume is not None or request.latents is None:
        return image, torch.empty(shape, dtype=torch.float32)
    return image, torch.from_numpy(np.array(request.latents, dtype=np.float32))


def check_images(request: DenoiseRequest) -> None:
    """Raise InvalidRequest for an image or a mask that hasn't the request's width and height."""
    size = request.height, request.width
    if request.mask is not None and request.image is None:
        raise InvalidRequest("a mask needs the image that it is of", "mask")
    for field, array, expected in (("image", request.image, (*size, 3)), ("mask", request.mask, size)):
        if field == "image" and request.enlarge is not None and request.mask is None:
            continue
        if array is not None and (array.shape != expected or array.dtype != np.uint8):
            raise InvalidRequest(f"{field} is {array.dtype} {array.shape}, expected uint8 {expected}", field)


def generator_for(seed: int, state: Pixels | None = None) -> torch.Generator:
    """A CPU generator, so that a seed means the same on every device, with the `state` of another one if there is."""
    generator = torch.Generator(device="cpu").manual_seed(seed_bits(seed))
    if state is not None:
        generator.set_state(torch.from_numpy(np.array(state, dtype=np.uint8)))
    return generator


def seed_bits(seed: int) -> int:
    """What a generator is given for a seed: torch's on a CPU has 32 bits, so that longer seeds are mixed into them.

    (The finalizer of SplitMix64, doi:10.1145/2714064.2660195.)
    """
    if 0 <= seed < 1 << 32:
        return seed
    bits = seed % (1 << 64)
    bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % (1 << 64)
    bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % (1 << 64)
    return (bits ^ bits >> 31) >> 32


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
    vae: Vae,
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
    seen = mask is None or repaints or not _is_wholly_new(request)
    clean = vae.encode(picture, generator, tiling=request.tiling) if picture is not None and seen else None
    if request.enlarge is not None and request.latents is None and clean is not None:
        clean = _resized(clean, *shape[1:], request.enlarge)
    elif request.enlarge is not None:
        clean = _enlarged(request, shape, request.enlarge).to(device)
    noise = _first_noise(request, shape, generator).to(device)
    if denoiser.takes_hints:
        return _Drawn(LaneImage(hint=_hint(request, vae, generator)), noise, clean)
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
    latents = torch.from_numpy(np.array(request.latents, dtype=np.float32))
    height, width = latents.shape[1:]
    # in whole cells, as A1111 counts; of another shape, what is beyond it is cut off on both sides
    scaled = max(shape[1], height * shape[2] // width), max(shape[2], width * shape[1] // height)
    top, left = ((whole - part) // 2 for whole, part in zip(scaled, shape[1:], strict=True))
    return _resized(latents, *scaled, upscaler)[:, top : top + shape[1], left : left + shape[2]]


def _is_wholly_new(request: DenoiseRequest) -> bool:
    """Whether nothing of the masked image is in the first latents: in A1111 there always is."""
    return request.mask is not None and request.strength in (None, 1.0) and not is_webui(request.sampler)


def _first_noise(request: DenoiseRequest, shape: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
    """The noise that an image begins with, as A1111 mixes it (its rng.py).

    The seed's, turned towards the variation seed's, and in the middle that of an image of another size.
    """
    inner = shape
    if request.noise_width and request.noise_height:
        inner = shape[0], request.noise_height // LATENT_SCALE, request.noise_width // LATENT_SCALE
    own = _draw_noise(generator, *shape)
    noise = own if inner == shape else _draw_noise(generator_for(request.seed), *inner)
    if request.variation_strength:
        other = _draw_noise(generator_for(request.variation_seed), *inner)
        noise = _turned(noise, other, request.variation_strength)
    if inner == shape:
        return noise
    (top, of_top, height), (left, of_left, width) = (
        (max(0, (whole - part) // 2), max(0, -((whole - part) // 2)), min(part, part + (whole - part) // 2 * 2))
        for whole, part in zip(shape[1:], inner[1:], strict=True)
    )
    own[:, top : top + height, left : left + width] = noise[:, of_top : of_top + height, of_left : of_left + width]
    return own


def _turned(noise: torch.Tensor, other: torch.Tensor, strength: float) -> torch.Tensor:
    """Spherical interpolation, column by column of each channel: at a strength of 0 `noise`, at 1 `other`."""
    cosines = (noise / noise.norm(dim=1, keepdim=True) * other / other.norm(dim=1, keepdim=True)).sum(1)
    if cosines.mean() > _PARALLEL:
        return noise * strength + other * (1 - strength)
    angles = torch.acos(cosines)
    parts = ((torch.sin(part * angles) / torch.sin(angles)).unsqueeze(1) for part in (1.0 - strength, strength))
    return next(parts) * noise + next(parts) * other


def _hint(request: DenoiseRequest, vae: Vae, generator: torch.Generator) -> torch.Tensor:
    """An inpainting UNet's further input channels; without a mask everything is painted anew."""
    size = request.height, request.width
    mask = np.full(size, 255, np.uint8) if request.mask is None else request.mask
    picture = np.zeros((*size, 3), np.uint8) if request.image is None else request.image
    latents = vae.encode(picture, generator, without=mask, tiling=request.tiling)
    return torch.cat([_latent_mask(mask).to(latents.device), latents])


def _first_latents(request: DenoiseRequest, table: SamplerTable, drawn: _Drawn) -> torch.Tensor:
    clean = drawn.clean
    if clean is None or _is_wholly_new(request):
        return drawn.noise * table.init_noise_sigma
    if request.mask is not None and request.masked_content != "image":
        hole = _latent_mask(request.mask).to(clean.device)
        clean = clean * (1 - hole) + (drawn.noise * hole if request.masked_content == "noise" else 0)
    return table.start_sample * clean + table.start_noise * drawn.noise


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
