"""Encodes and decodes with a VAE: batched, in tiles, in float32 if its own dtype overflows."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from deployments.engine.checkpoints.denoiser_weights import DenoiserWeights
from deployments.engine.errors import NumericalFailure
from deployments.engine.tiling import seamless
from deployments.engine.types import LATENT_SCALE, MASKED, Pixels

Decoder: TypeAlias = "AutoencoderKL | AutoencoderTiny"

_REMEMBERED = 8  # pictures; 1 MB of posterior each at 1024 x 1024
_OVERLAP = 0.25  # of a tile with the next


class Vae:
    """A VAE. It keeps the posteriors of the last few pictures, as all images of a job begin with the same one."""

    def __init__(
        self,
        model: AutoencoderKL,
        *,
        tiny: AutoencoderTiny | None = None,
        bring: Callable[[], None] = lambda: None,
        await_whole: Callable[[], None] = lambda: None,
        tiled: Callable[[int], bool] = lambda cells: False,
        tile: int = 512,
    ) -> None:
        """Wrap a model.

        Args:
            model: encodes, and decodes unless there is a `tiny`.
            tiny: decodes in its place (TAESD).
            bring: called before the model computes.
            await_whole: called before its weights are read outside of a forward.
            tiled: whether an image of so many latent cells is taken in tiles.
            tile: pixels of a tile's side.
        """
        self._model = model
        self._tiny = tiny
        self._bring = bring
        self._await_whole = await_whole
        self._tiled = tiled
        self._tile = tile
        self._posteriors: OrderedDict[bytes, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()

    @classmethod
    def of(
        cls,
        weights: DenoiserWeights,
        tiled: Callable[[int], bool] = lambda cells: False,
        tile: int = 512,
    ) -> "Vae":
        """The VAE of a denoiser, with its placement."""
        place = weights.placement
        return cls(
            weights.vae,
            tiny=weights.tiny,
            bring=place.bring_vae,
            await_whole=place.await_vae,
            tiled=tiled,
            tile=tile,
        )

    def encode(
        self, image: Pixels, generator: torch.Generator, without: Pixels | None = None, *, tiling: bool = False
    ) -> torch.Tensor:
        """Sample scaled latents from the VAE's posterior, as diffusers' img2img pipelines do.

        Args:
            image: (height, width, 3), uint8.
            generator: of the CPU; drawn from once.
            without: (height, width), uint8: from 128 on the picture is made grey.
            tiling: whether the picture goes on at its other side; not where it is taken in tiles.

        Returns:
            (channels, height / 8, width / 8), float32.

        Raises:
            NumericalFailure: the encoding isn't finite, even in float32.
        """
        mean, std = self._posterior(image, without, tiling)
        noise = torch.randn(mean.shape, generator=generator, dtype=torch.float32).to(mean.device)
        return _normalise(self._model, mean + std * noise)[0]

    def decode(self, latents: torch.Tensor, *, tiling: bool = False) -> list[np.ndarray | NumericalFailure]:
        """Decode scaled latents as one batch.

        An image that overflows in the VAE's dtype is decoded again, alone and in float32.

        Args:
            latents: (n, channels, h, w), float32.
            tiling: as in `encode`.

        Returns:
            (8 h, 8 w, 3), uint8 each; NumericalFailure in the place of an image that isn't finite even so.
        """
        decoder: Decoder = self._model
        if self._tiny is None:
            self._prepare(latents.shape[-2] * latents.shape[-1])
        else:
            decoder = self._tiny
        with seamless(decoder, tiling and not (self._tiny is None and self._model.use_tiling)):
            return self._decoded(decoder, _denormalise(decoder, latents))

    def _decoded(self, decoder: Decoder, unscaled: torch.Tensor) -> list[np.ndarray | NumericalFailure]:
        if _wants_float32(decoder):
            decoded = self._decode_wide(decoder, unscaled)
        else:
            decoded = decoder.decode(_like(decoder, unscaled), return_dict=False)[0].float()
        finite = torch.isfinite(decoded).flatten(1).all(1).tolist()
        images: list[np.ndarray | NumericalFailure] = []
        for index, good in enumerate(finite):
            image = decoded[index] if good else self._decode_wide(decoder, unscaled[index : index + 1])[0]
            if not good and not bool(torch.isfinite(image).all()):
                images.append(NumericalFailure("the VAE's decode is not finite, in float32 either"))
                continue
            pixels = (image / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
            images.append(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
        return images

    def _decode_wide(self, decoder: Decoder, latents: torch.Tensor) -> torch.Tensor:
        with self._in_float32(decoder):
            decoded: torch.Tensor = decoder.decode(_like(decoder, latents), return_dict=False)[0]
        return decoded.float()

    @contextmanager
    def _in_float32(self, vae: Decoder) -> Iterator[None]:
        """Have the VAE's weights in float32, which is exact for weights of a narrower dtype.

        The original tensors are kept and put back, because the next checkpoint is copied into them.
        """
        self._await_whole()
        kept = [(of, of.data) for of in (*vae.parameters(), *vae.buffers())]
        try:
            for of, data in kept:
                of.data = data.float() if data.is_floating_point() else data
            yield
        finally:  # also where memory ran out half way
            for of, data in kept:
                of.data = data

    def _posterior(self, image: Pixels, without: Pixels | None, tiling: bool) -> tuple[torch.Tensor, torch.Tensor]:
        digest = hashlib.sha256(repr((image.shape, tiling)).encode())
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
            self._prepare(pixels.shape[-2] * pixels.shape[-1] // LATENT_SCALE**2)
            with seamless(self._model, tiling and not self._model.use_tiling):
                known = self._posteriors[key] = self._new_posterior(pixels)
            if len(self._posteriors) > _REMEMBERED:
                self._posteriors.popitem(last=False)
        self._posteriors.move_to_end(key)
        return known

    def _new_posterior(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        vae = self._model
        if not _wants_float32(vae):
            posterior = vae.encode(_like(vae, pixels)).latent_dist
            if bool(torch.isfinite(posterior.mean).all()):
                return posterior.mean.float(), posterior.std.float()
        with self._in_float32(vae):
            posterior = vae.encode(_like(vae, pixels)).latent_dist
        if not bool(torch.isfinite(posterior.mean).all()):
            raise NumericalFailure("the VAE's encoding of the image is not finite, in float32 either")
        return posterior.mean.float(), posterior.std.float()

    def _prepare(self, cells: int) -> None:
        self._bring()
        self._model.use_tiling = self._tiled(cells)
        self._model.tile_sample_min_size = self._tile
        self._model.tile_latent_min_size = self._tile // LATENT_SCALE
        self._model.tile_overlap_factor = _OVERLAP


def _wants_float32(vae: Decoder) -> bool:
    """SDXL's own VAE overflows in float16 and says so in its configuration."""
    return vae.dtype == torch.float16 and bool(vae.config.get("force_upcast", False))


def _like(vae: Decoder, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(device=vae.device, dtype=vae.dtype)


def _normalise(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    mean, std = _moments(vae, latents)
    scaling = float(vae.config.scaling_factor)
    return latents * scaling if mean is None or std is None else (latents - mean) * scaling / std


def _denormalise(vae: Decoder, latents: torch.Tensor) -> torch.Tensor:
    mean, std = _moments(vae, latents)
    scaling = float(vae.config.scaling_factor)
    return latents / scaling if mean is None or std is None else latents * std / scaling + mean


def _moments(vae: Decoder, latents: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Per-channel mean and std that some SDXL VAEs carry, (1, channels, 1, 1)."""
    mean, std = vae.config.get("latents_mean"), vae.config.get("latents_std")
    if mean is None or std is None:
        return None, None
    return latents.new_tensor(mean).view(1, -1, 1, 1), latents.new_tensor(std).view(1, -1, 1, 1)
