"""Brings checkpoints to the device: from files or the host's memory, into new models or those of one that leaves."""

import logging
from collections.abc import Mapping

from diffusers import AutoencoderTiny

from deployments.engine.checkpoints.denoiser_weights import DenoiserTensors, DenoiserWeights, PlaceFor, placed, refilled
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings, MemoryPolicy
from deployments.engine.device import Device, vae_dtype
from deployments.engine.memory.table import GIB
from deployments.engine.residency.host_cache import HostCache, Reader
from deployments.engine.residency.quantization_check import check_likeness
from deployments.engine.vae.autoencoder import Vae
from deployments.engine.vae.previews import PreviewMap, fit_preview_map
from deployments.engine.vae.tiny_decoder import load_tiny_decoder

logger = logging.getLogger(__name__)


class WeightLoader:
    """Loads the checkpoints of a catalogue onto one device, in its thread."""

    def __init__(
        self,
        settings: EngineSettings,
        catalogue: Mapping[str, CheckpointSpec],
        read: Reader,
        device: Device,
        policy: MemoryPolicy = "resident",
    ) -> None:
        self._catalogue = catalogue
        self._read = read
        self._resident = settings.resident_checkpoints
        self._place_for = PlaceFor(
            device=device.torch_device,
            dtype=device.dtype,
            vae_dtype=vae_dtype(settings, device.dtype),
            channels_last=settings.channels_last,
            quantized=settings.quantize != "none",
            policy=policy,
        )
        self._tiny_source = settings.vae.tiny
        self._tiny: AutoencoderTiny | None = None
        self._host_cache = HostCache(
            read,
            int(settings.host_memory_gib * GIB),
            device.dtype,
            self._place_for.vae_dtype,
            channels_last=settings.channels_last,
            pinned=device.torch_device.type == "cuda",
        )
        self._previews: dict[tuple[str, str], PreviewMap] = {}  # by checkpoint and the hash of its files

    @property
    def _swaps(self) -> bool:
        """Whether checkpoints take turns on the device; otherwise nothing is ever read twice."""
        return len(self._catalogue) > self._resident

    def read(self, name: str) -> DenoiserTensors:
        """A checkpoint's tensors, which may still be mapped to its files. Raises CheckpointError."""
        spec = self._catalogue[name]
        return self._host_cache.get(name, spec) if self._swaps else self._read(spec)

    def forget(self, name: str) -> None:
        """A checkpoint has left the catalogue."""
        self._host_cache.drop(name, *(() if self._swaps else self._host_cache.names))
        self._previews = {key: of for key, of in self._previews.items() if key[0] != name}

    def place(
        self, name: str, tensors: DenoiserTensors, models: DenoiserWeights | None
    ) -> tuple[DenoiserWeights, PreviewMap]:
        """The checkpoint on the device, and its preview map.

        Args:
            name: of the checkpoint.
            tensors: as `read` returned them.
            models: of a checkpoint that has left, to be filled anew; None makes new ones.

        Raises:
            CheckpointError: a tensor is missing, left over, of another shape or not finite, or quantising the UNet
                changes its output too much.
        """
        weights = self._new(tensors) if models is None else refilled(models, tensors)
        key = name, weights.hash
        if key not in self._previews:
            if self._place_for.quantized:
                off = check_likeness(name, weights, tensors.unet.tensors)
                logger.info("checkpoint %s: quantised, its UNet's output is %.2g of its spread off", name, off)
            self._previews[key] = fit_preview_map(Vae.of(weights))
        return weights, self._previews[key]

    def _new(self, tensors: DenoiserTensors) -> DenoiserWeights:
        place = self._place_for
        if self._tiny is None and self._tiny_source is not None:
            self._tiny = load_tiny_decoder(self._tiny_source, place.device, place.vae_dtype)
        return placed(tensors, place, self._tiny)
