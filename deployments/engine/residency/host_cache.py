"""Checkpoints that were read, kept in host memory up to a budget, from where they come to the device without a file.

Pinned where the device is CUDA, so that copying runs at the bus's speed and takes no processor time.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from deployments.engine.checkpoints.denoiser_weights import DenoiserTensors
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.checkpoints.tensors import Tensors

Reader = Callable[[CheckpointSpec], DenoiserTensors]

_ALIGNMENT = 64  # bytes: of every type's elements, and of a cache line
_PIECE = 256 << 20  # bytes, a power of two: torch pins no other numbers, and fills up to the next


class HostCache:
    """Checkpoints by name; those used least recently leave first. One that is larger than the budget is never kept."""

    def __init__(
        self,
        read: Reader,
        budget: int,
        dtype: torch.dtype,
        vae_dtype: torch.dtype,
        *,
        channels_last: bool = False,
        pinned: bool = False,
    ) -> None:
        """Create an empty cache.

        Args:
            read: reads a checkpoint's files.
            budget: bytes of the host's memory.
            dtype: of the UNets on the device.
            vae_dtype: of the VAEs on the device.
            channels_last: memory format of both.
            pinned: whether to keep them in pinned memory.
        """
        self._read = read
        self._budget = budget
        self._dtype = dtype
        self._vae_dtype = vae_dtype
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
            unet=replace(read.unet, tensors=self._copied(read.unet.tensors, self._dtype)),
            vae=replace(read.vae, tensors=self._copied(read.vae.tensors, self._vae_dtype)),
        )
        self._kept[name] = kept
        return kept

    def drop(self, *names: str) -> None:
        """Keep these no longer."""
        for name in names:
            self._kept.pop(name, None)

    def _size(self, read: DenoiserTensors) -> int:
        models = (read.unet, self._dtype), (read.vae, self._vae_dtype)
        pieces = [piece for model, dtype in models for piece in _pieces(_sizes(model.tensors, dtype))]
        sizes = [sum(piece.values()) for piece in pieces]
        return sum(map(pinned_bytes, sizes)) if self._pinned else sum(sizes)

    def _copied(self, tensors: Tensors, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """In few pieces of memory.

        Pinning has its price by the piece, and those of a checkpoint that leaves are there for the next.
        """
        copies: dict[str, torch.Tensor] = {}
        for piece in _pieces(_sizes(tensors, dtype)):
            memory = torch.empty(sum(piece.values()), dtype=torch.uint8, pin_memory=self._pinned)
            for name, own in zip(piece, memory.split([*piece.values()]), strict=True):
                tensor = tensors[name]
                flat = own[: tensor.numel() * dtype.itemsize].view(dtype)
                copies[name] = self._shaped(flat, tensor.shape).copy_(tensor)
        return copies

    def _shaped(self, flat: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        if self._channels_last and len(shape) == 4:
            outputs, inputs, height, width = shape
            return flat.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
        return flat.view(shape)


def pinned_bytes(size: int) -> int:
    """What torch takes to pin so many: the next power of two (ATen/core/CachingHostAllocator.h)."""
    return 1 << (size - 1).bit_length() if size else 0


def _pieces(sizes: Mapping[str, int]) -> list[dict[str, int]]:
    """The same in pieces of at most _PIECE bytes, no tensor in two; one that is larger is alone."""
    pieces: list[dict[str, int]] = []
    filled = _PIECE
    for name, size in sizes.items():
        if filled + size > _PIECE:
            pieces.append({})
            filled = 0
        pieces[-1][name] = size
        filled += size
    return pieces


def _sizes(tensors: Tensors, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of each in that type, filled up so that the next one is aligned."""
    bytes_of = {name: of.numel() * dtype.itemsize for name, of in tensors.items()}
    return {name: math.ceil(size / _ALIGNMENT) * _ALIGNMENT for name, size in bytes_of.items()}
