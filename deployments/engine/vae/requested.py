"""The VAEs that requests name in place of their checkpoint's own: which are on the device, and that they fit."""

import inspect
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from deployments.engine.checkpoints.denoiser_weights import DenoiserWeights, placed_model
from deployments.engine.checkpoints.loader import read_vae
from deployments.engine.checkpoints.weight_folder import CONFIG, files_state
from deployments.engine.config import EngineSettings
from deployments.engine.device import Device, vae_dtype
from deployments.engine.errors import CheckpointError, DoesNotFit
from deployments.engine.memory.offload import OffloadedModel
from deployments.engine.memory.weight_pool import DeviceWeights, WeightPool
from deployments.engine.types import DenoiseRequest
from deployments.engine.vae.autoencoder import Vae
from deployments.engine.vae.folder import VaeFile, VaeFolder

# what two VAEs of the same latents may have of their own
_OWN = ("self", "sample_size", "force_upcast")


@dataclass(frozen=True, slots=True, eq=False)
class RequestedVae:
    """A VAE beside a checkpoint, as DeviceWeights; `hash` is of both."""

    hash: str
    bytes: int
    vae: Vae
    config: Mapping[str, Any]


class RequestedVaes:
    """The VAEs that lanes have in place of their checkpoint's, in the device's thread."""

    def __init__(self, room: int, device: Device, settings: EngineSettings, tiled: Callable[[str, int], bool]) -> None:
        """Keep none yet.

        Args:
            room: bytes of the device for all of them.
            device: where they are.
            settings: of the engine.
            tiled: whether a checkpoint's images of so many latent cells are taken in tiles.
        """
        self._pool: WeightPool[RequestedVae] = WeightPool(room)
        self._device = device
        self._settings = settings
        self._dtype = vae_dtype(settings, device.dtype)
        self._tiled = tiled

    def has_room(self, request: DenoiseRequest, file: VaeFile | None, in_use: Collection[DeviceWeights]) -> bool:
        """Whether a request's VAE fits beside those that lanes use; True if it never fits: then `get` raises."""
        return file is None or self._pool.has_room({_key(request, file): self._bytes(file)}, in_use)

    def get(
        self, request: DenoiseRequest, file: VaeFile, checkpoint: DenoiserWeights, in_use: Collection[DeviceWeights]
    ) -> RequestedVae:
        """The request's VAE, loaded if it isn't here.

        Args:
            request: that names it.
            file: of the VAE.
            checkpoint: of the request; a single file's latents are scaled as its own VAE's.
            in_use: weights that lanes use and that must stay.

        Raises:
            VaeRefused: it can't be read, or has other latents than the checkpoint.
            DoesNotFit: it is larger than all the room.
        """
        name, size = file.source.name, self._bytes(file)
        room = self._pool.room
        if size > room:
            raise DoesNotFit(f"the VAE {name!r} takes {size >> 20} MiB, there is room for {room >> 20}", "vae")
        config = _config(file, checkpoint)
        load = partial(self._load, request, file, config, checkpoint)
        requested = self._pool.get(_key(request, file), size, load, {weights.hash for weights in in_use})
        why = _misfit(requested.config, checkpoint.vae.config)
        if why is not None:
            raise VaeFolder.refused(name, why)
        return requested

    def _bytes(self, file: VaeFile) -> int:
        return file.source.numbers * self._dtype.itemsize

    def _load(
        self, request: DenoiseRequest, file: VaeFile, config: Mapping[str, Any], checkpoint: DenoiserWeights
    ) -> RequestedVae:
        source = file.source
        why = _misfit(config, checkpoint.vae.config)
        if why is not None:
            raise VaeFolder.refused(source.name, why)
        folder = source.files[0].parent
        placement = checkpoint.placement
        where = self._device.torch_device if placement.resident else torch.device("cpu")
        layout = torch.channels_last if self._settings.channels_last else torch.preserve_format
        try:
            if files_state(source.files) != source.written:
                raise VaeFolder.refused(source.name, "was changed while the image waited: ask again")
            tensors = read_vae(source.weights, config, folder / CONFIG if source.config else Path(source.name))
            model = placed_model(AutoencoderKL, tensors, where, self._dtype, layout)
        except (CheckpointError, OSError) as error:
            raise VaeFolder.unreadable(source.name, error, folder) from None
        moves: dict[str, Any] = {}
        if not placement.resident:
            moved = OffloadedModel(model, self._device.torch_device)
            moves = {"bring": partial(placement.places.bring, moved), "await_whole": moved.await_whole}
        vae = Vae(model, tiled=partial(self._tiled, request.checkpoint), tile=self._settings.vae.tile, **moves)
        return RequestedVae(_key(request, file), self._bytes(file), vae, config)


def _key(request: DenoiseRequest, file: VaeFile) -> str:
    return f"{file.hash} {request.checkpoint}"


def _config(file: VaeFile, checkpoint: DenoiserWeights) -> dict[str, Any]:
    """The VAE's own configuration, or the one of the checkpoint's VAE."""
    if file.source.config is None:
        return dict(checkpoint.vae.config)
    upcasts = {} if checkpoint.family.upcasts_vae else {"force_upcast": False}
    return {**file.source.config, **upcasts}


def _misfit(config: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
    """Why a VAE can't take the place of a checkpoint's own; None if it can. Both are configurations."""
    for key, of in inspect.signature(AutoencoderKL.__init__).parameters.items():
        if key not in _OWN:
            found, wanted = (json.dumps(one.get(key, of.default)) for one in (config, own))
            if found != wanted:
                return f"is for another kind of model: its {key} is {found}, this model's {wanted}"
    return None
