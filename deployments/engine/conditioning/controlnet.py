"""The ControlNets on the device: how one looks at a picture, what it says in a step, and which of them stay.

A ControlNet is a copy of a UNet's way down that also sees a control image; what it makes of it is added to the UNet's
own (arXiv:2302.05543). Knows models and rows; nothing of batches, or of how a lane came by its control image.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel

from deployments.engine.checkpoints.files import hash_files
from deployments.engine.checkpoints.weight_folder import without_folder
from deployments.engine.conditioning.controlnet_folder import ControlnetSource, written_at
from deployments.engine.conditioning.controlnet_weights import misfit, read_controlnet
from deployments.engine.config import EngineSettings
from deployments.engine.denoising.attention import use_attention
from deployments.engine.denoising.unet_inputs import UnetInputs
from deployments.engine.device import Device
from deployments.engine.errors import CheckpointError, ControlnetRefused, DoesNotFit
from deployments.engine.freed_memory import release_memory
from deployments.engine.types import Pixels


@dataclass(frozen=True, slots=True)
class ControlnetFile:
    """A ControlNet that was found. hash: sha256 (hex) over its weight files."""

    source: ControlnetSource
    hash: str

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.source.name

    @classmethod
    def of(cls, source: ControlnetSource) -> "ControlnetFile":
        """Reads all of it, once in a process."""
        return cls(source, hash_files(source.files))


class Controlnet:
    """One on the device. bytes: of its weights there."""

    def __init__(self, hash: str, model: ControlNetModel) -> None:  # noqa: A002  # the word for it
        self.hash = hash
        self.config: Mapping[str, Any] = model.config
        self.bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
        self._embedding = model.controlnet_cond_embedding
        # a control image is the same at every step: it is looked at once, and the model gets what was seen
        model.controlnet_cond_embedding = torch.nn.Identity()
        self._model = model
        self._here = threading.local()  # the mask of the rows that a thread computes
        for block in (*model.down_blocks, model.mid_block):
            if getattr(block, "has_cross_attention", False):
                block.register_forward_pre_hook(self._masked, with_kwargs=True)

    def look_at(self, image: Pixels) -> torch.Tensor:
        """What it sees in a control image: (channels, height / 8, width / 8). image: uint8 (height, width, 3)."""
        weight = self._embedding.conv_in.weight
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(weight.device).float().div(255.0)
        seen: torch.Tensor = self._embedding(pixels.to(weight.dtype))[0]
        return seen

    def residuals(self, inputs: UnetInputs, seen: torch.Tensor) -> list[torch.Tensor]:
        """What is added to the UNet's way down, level by level, and last to its middle.

        seen: (rows, channels, height / 8, width / 8), of each row's control image.
        """
        self._here.mask = inputs.mask
        try:
            down, middle = self._model(
                inputs.sample,
                inputs.timesteps,
                inputs.hidden_states,
                seen,
                added_cond_kwargs=inputs.added,
                return_dict=False,
            )
        finally:
            del self._here.mask
        return [*down, middle]

    def _masked(self, block: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """As a UNet tells its blocks where a text ends; a ControlNetModel has no word for it."""
        if self._here.mask is None:
            return None
        bias = (1 - self._here.mask) * -10_000.0
        return args, kwargs | {"encoder_attention_mask": bias[:, None]}


@dataclass(frozen=True, slots=True, eq=False)
class LaneControl:
    """What steers a lane. seen: as Controlnet.look_at has it. span: evaluations of the lane in which it does."""

    controlnet: Controlnet
    seen: torch.Tensor
    scale: float
    span: range


class Controlnets:
    """Those on one device: the least recently used leaves first, never one that lanes use. In the device's thread."""

    def __init__(self, room: int, device: Device, settings: EngineSettings) -> None:
        """room: bytes for the weights of all."""
        self._room = room
        self._device = device
        self._settings = settings
        self._controlnets: OrderedDict[str, Controlnet] = OrderedDict()  # by hash, least recently used first

    @property
    def resident(self) -> Sequence[str]:
        """Hashes, least recently used first."""
        return tuple(self._controlnets)

    def has_room(self, files: Iterable[ControlnetFile], in_use: Collection[Controlnet]) -> bool:
        """Whether they can be here beside those that lanes use. Also true of what never can: `get` says so."""
        wanted = {file.hash: self._bytes(file) for file in files}
        used = {controlnet.hash: controlnet.bytes for controlnet in in_use}
        return sum(wanted.values()) > self._room or sum((wanted | used).values()) <= self._room

    def get(
        self, files: Sequence[ControlnetFile], unet: Mapping[str, Any], channels: int, in_use: Collection[Controlnet]
    ) -> list[Controlnet]:
        """They, for a UNet of this configuration. channels: of its latents.

        Raises ControlnetRefused if one can't be read or isn't for this UNet, DoesNotFit if they are too large together.
        """
        needed = sum({file.hash: self._bytes(file) for file in files}.values())
        if needed > self._room:
            raise DoesNotFit(
                f"the ControlNets {', '.join(repr(file.name) for file in files)} take {needed >> 20} MiB together, "
                f"there is room for {self._room >> 20}",
                "controlnets",
            )
        kept = {controlnet.hash for controlnet in in_use} | {file.hash for file in files}
        found = []
        for file in files:
            if file.hash not in self._controlnets:
                self._make_room(self._bytes(file), kept)
                self._controlnets[file.hash] = self._load(file, unet, channels)
            controlnet = self._controlnets[file.hash]
            why = misfit(controlnet.config, unet, channels)
            if why is not None:
                raise _refused(file, why)
            self._controlnets.move_to_end(file.hash)
            found.append(controlnet)
        return found

    def _bytes(self, file: ControlnetFile) -> int:
        return file.source.numbers * self._device.dtype.itemsize

    def _make_room(self, needed: int, kept: Collection[str]) -> None:
        idle = [hash_ for hash_ in self._controlnets if hash_ not in kept]
        evicted = False
        while idle and needed + sum(one.bytes for one in self._controlnets.values()) > self._room:
            del self._controlnets[idle.pop(0)]
            evicted = True
        if evicted:
            release_memory()

    def _load(self, file: ControlnetFile, unet: Mapping[str, Any], channels: int) -> Controlnet:
        source = file.source
        if source.config is not None and (why := misfit(source.config, unet, channels)) is not None:
            raise _refused(file, why)
        try:
            if written_at(source.files) != source.written:
                raise _refused(file, "was changed while the image waited: ask again")
            model = read_controlnet(source, unet, channels, self._device.torch_device, self._device.dtype)
        except (CheckpointError, OSError) as error:
            raise _refused(file, f"can't be used: {without_folder(source.files[0].parent, error)}") from None
        if self._settings.channels_last:
            model = model.to(memory_format=torch.channels_last)
        use_attention(model, self._settings.attention)
        return Controlnet(file.hash, model)


def span_of(start: float, end: float, evaluations: int, total: float) -> range:
    """The evaluations between two fractions, of those that a lane takes: diffusers' control_guidance_start and _end.

    total: evaluations that the fractions are of.
    """
    inside = [step for step in range(evaluations) if step / total >= start and (step + 1) / total <= end]
    return range(inside[0], inside[-1] + 1) if inside else range(0)


def _refused(file: ControlnetFile, why: str) -> ControlnetRefused:
    return ControlnetRefused(f"ControlNet {file.name!r} {why}", "controlnets")
