"""Checkpoints that were read, kept in host memory up to a budget, from where they come to the device without a file.

Pinned where the device is CUDA, so that copying runs at the bus's speed and asks nothing of the processor. Knows no
models and not what is on the device.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

import torch

from deployments.engine.checkpoint_spec import CheckpointSpec
from deployments.engine.checkpoint_tensors import Tensors
from deployments.engine.denoiser_weights import DenoiserTensors

Reader = Callable[[CheckpointSpec], DenoiserTensors]

_ALIGNMENT = 64  # bytes: of every type's elements, and of a cache line


class HostCopies:
    """Checkpoints by name; those used least recently leave first. One that is larger than the budget is never kept."""

    def __init__(
        self, read: Reader, budget: int, dtype: torch.dtype, *, channels_last: bool = False, pinned: bool = False
    ) -> None:
        """budget: bytes. dtype, channels_last: how the device's weights are, so that a copy changes nothing."""
        self._read = read
        self._budget = budget
        self._dtype = dtype
        self._channels_last = channels_last
        self._pinned = pinned
        self._kept: OrderedDict[str, DenoiserTensors] = OrderedDict()  # least recently used first

    @property
    def names(self) -> tuple[str, ...]:
        """What is kept, least recently used first."""
        return tuple(self._kept)

    def get(self, name: str, spec: CheckpointSpec) -> DenoiserTensors:
        """What is kept under the name; else read now, and kept if the budget allows. Raises CheckpointError."""
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        read = self._read(spec)
        size = self._size(read)
        if size > self._budget:
            return read
        while size + sum(map(self._size, self._kept.values())) > self._budget:
            self._kept.popitem(last=False)
        kept = replace(
            read,
            unet=replace(read.unet, tensors=self._copied(read.unet.tensors)),
            vae=replace(read.vae, tensors=self._copied(read.vae.tensors)),
        )
        self._kept[name] = kept
        return kept

    def forget(self, name: str) -> None:
        """Drop a copy, if there is one."""
        self._kept.pop(name, None)

    def _size(self, read: DenoiserTensors) -> int:
        return sum(self._bytes(of) for model in (read.unet, read.vae) for of in model.tensors.values())

    def _bytes(self, of: torch.Tensor) -> int:
        return math.ceil(of.numel() * self._dtype.itemsize / _ALIGNMENT) * _ALIGNMENT

    def _copied(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """In one piece of memory: pinning has its price by the piece."""
        memory = torch.empty(sum(map(self._bytes, tensors.values())), dtype=torch.uint8, pin_memory=self._pinned)
        copies: dict[str, torch.Tensor] = {}
        begin = 0
        for name, tensor in tensors.items():
            flat = memory[begin : begin + tensor.numel() * self._dtype.itemsize].view(self._dtype)
            copies[name] = self._shaped(flat, tensor.shape).copy_(tensor)
            begin += self._bytes(tensor)
        return copies

    def _shaped(self, flat: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        if self._channels_last and len(shape) == 4:
            outputs, inputs, height, width = shape
            return flat.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
        return flat.view(shape)
