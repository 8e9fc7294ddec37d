"""How a checkpoint comes to the device: from a file or the host's memory, into new models or those of another one.

What is loaded again has to be what was loaded first: a canary shows it. A copy in memory that fails is dropped and the
files are read anew; if those fail too, the checkpoint is quarantined. Knows nothing of lanes, or of who has to leave.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from diffusers import AutoencoderTiny

from deployments.engine.checkpoints.canary import canary_of
from deployments.engine.checkpoints.denoiser_weights import DenoiserTensors, DenoiserWeights, PlaceFor, placed, refilled
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings, MemoryPolicy
from deployments.engine.device import Device, vae_dtype
from deployments.engine.errors import CheckpointError, NumericalFailure
from deployments.engine.memory.table import GIB
from deployments.engine.residency.host_cache import HostCopies, Reader
from deployments.engine.residency.likeness import check_likeness
from deployments.engine.vae.autoencoder import Vae
from deployments.engine.vae.previews import PreviewMap, fit_preview_map
from deployments.engine.vae.tiny_decoder import load_tiny_decoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _FirstLoading:
    """What a checkpoint was when it was first on the device. hash: of its files; canary: of what they draw."""

    hash: str
    canary: str
    previews: PreviewMap


class Loading:
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
        self._place_for = PlaceFor(
            device=device.torch_device,
            dtype=device.dtype,
            vae_dtype=vae_dtype(settings, device.dtype),
            channels_last=settings.channels_last,
            quantize=settings.quantize,
            policy=policy,
        )
        self._tiny_source = settings.vae.tiny
        self._tiny: AutoencoderTiny | None = None
        # where everything stays on the device, nothing is ever read twice
        spare = len(catalogue) > settings.resident_checkpoints
        self._copies = HostCopies(
            read,
            int(settings.host_memory_gib * GIB) if spare else 0,
            device.dtype,
            self._place_for.vae_dtype,
            channels_last=settings.channels_last,
            pinned=device.torch_device.type == "cuda",
        )
        self._first: dict[str, _FirstLoading] = {}
        self._quarantined: set[str] = set()

    @property
    def quarantined(self) -> tuple[str, ...]:
        """Checkpoints that came to the device as something else than at first, from their files too."""
        return tuple(sorted(self._quarantined))

    def read(self, name: str) -> DenoiserTensors:
        """A checkpoint's tensors, which may still be mapped to its files. Raises CheckpointError."""
        self.check(name)
        return self._copies.get(name, self._catalogue[name])

    def check(self, name: str) -> None:
        """Raise CheckpointError for a checkpoint that is quarantined."""
        if name in self._quarantined:
            raise CheckpointError(f"checkpoint {name!r} is quarantined: loaded again, it drew something else")

    def place(
        self, name: str, read: DenoiserTensors, models: DenoiserWeights | None
    ) -> tuple[DenoiserWeights, PreviewMap]:
        """The checkpoint on the device, and its preview map. models: of one that has left, to be filled anew.

        Raises CheckpointError if it isn't what it was at first, or doesn't bear to be quantised.
        """
        weights = self._new(read) if models is None else refilled(models, read)
        if not self._is_itself(name, weights, read):
            logger.error("checkpoint %s: loaded again, it draws something else; its files are read anew", name)
            self._copies.forget(name)
            read = self.read(name)
            weights = refilled(weights, read) if weights.placement.resident else self._new(read)
            if not self._is_itself(name, weights, read):
                self._copies.forget(name)
                self._quarantined.add(name)
                self.check(name)
        return weights, self._first[name].previews

    def _new(self, read: DenoiserTensors) -> DenoiserWeights:
        place = self._place_for
        if self._tiny is None and self._tiny_source is not None:
            self._tiny = load_tiny_decoder(self._tiny_source, place.device, place.vae_dtype)
        return placed(read, place, self._tiny)

    def _is_itself(self, name: str, weights: DenoiserWeights, read: DenoiserTensors) -> bool:
        """Whether these are the weights that had this name and hash before; the first ones are."""
        first = self._first.get(name)
        known = first is not None and first.hash == weights.hash
        try:
            canary = canary_of(weights)
        except NumericalFailure as error:
            if known:
                return False
            raise CheckpointError(f"checkpoint {name!r}: {error}") from None
        if first is not None and known:
            return first.canary == canary
        if self._place_for.quantize != "none":
            off = check_likeness(name, weights, read.unet.tensors)
            kind = self._place_for.quantize
            logger.info("checkpoint %s in %s: its UNet's output is %.2g of its spread off", name, kind, off)
        self._first[name] = _FirstLoading(weights.hash, canary, fit_preview_map(Vae.of(weights)))
        return True
