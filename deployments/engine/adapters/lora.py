"""Applies LoRAs to single rows of a model's forward, without changing its weights.

Hooks on the changed layers add scale * up(down(x)) to the outputs of the rows that have the LoRA. A row without LoRAs
is computed as if there were none. Rows are computed in the same portions whatever shares their batch, so that their
bits don't depend on it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch.nn import Conv2d
from torch.nn.functional import conv2d, linear

from deployments.engine.adapters.layer_names import Layer, Part, text_layers, unet_layers
from deployments.engine.adapters.lora_file import LoraFile, LowRank
from deployments.engine.errors import LoraRefused
from deployments.engine.quantization import weight_layout
from deployments.engine.row_threads import rows_here

_Updates = Mapping[Layer, LowRank]


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A LoRA's part for one model, on the model's device, at a weight."""

    updates: _Updates
    weight: float


class AdaptedRows(NamedTuple):
    """Rows start to stop (exclusive) of a forward and their LoRAs. They are computed in one portion."""

    start: int
    stop: int
    adapters: Sequence[Adapter]


class _Run(NamedTuple):
    start: int
    stop: int
    update: LowRank
    scale: float


# the updates of each layer, with the rows of its output that they are added to
AdapterPlan = Mapping[Layer, Sequence[_Run]]


class AdaptedModel:
    """A UNet or a text encoder, and the LoRAs on its device.

    A LoRA stays on the device for as long as its LoraFile is in memory (see LoraFiles).

    Args:
        model: the model.
        part: which part of a checkpoint it is.
        device: where the model computes, wherever its weights are.
    """

    def __init__(self, model: torch.nn.Module, part: Part, device: torch.device) -> None:
        self._layers = unet_layers(model) if part == "unet" else text_layers(model)
        self._part = part
        self._device = device
        self._on_device: WeakKeyDictionary[LoraFile, _Updates] = WeakKeyDictionary()

    def adapter(self, file: LoraFile, weight: float) -> Adapter | None:
        """The LoRA's part for this model, or None. Runs in the device's thread.

        Raises LoraRefused if the LoRA is for another kind of model.
        """
        if self._part not in file.updates:
            return None
        if file not in self._on_device:
            self._on_device[file] = self._place(file)
        return Adapter(self._on_device[file], weight)

    @staticmethod
    def plan(adapted: Sequence[AdaptedRows]) -> AdapterPlan:
        """The updates that forwards with these rows add."""
        runs: dict[Layer, list[_Run]] = {}
        for start, stop, adapters in adapted:
            for adapter in adapters:
                for layer, update in adapter.updates.items():
                    scale = adapter.weight * update.scale
                    runs.setdefault(layer, []).append(_Run(start, stop, update, scale))
        return runs

    @contextmanager
    def adapted(self, plan: AdapterPlan) -> Iterator[None]:
        """Apply the plan to forwards within the block, whose rows are declared (row_threads.py)."""
        hooks = [layer.register_forward_hook(self._hook(runs)) for layer, runs in plan.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, runs: Sequence[_Run]) -> Callable[[Layer, tuple[torch.Tensor], torch.Tensor], None]:
        def add(layer: Layer, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
            first, end = rows_here().start, rows_here().stop
            for start, stop, update, scale in runs:
                if first <= start < end:
                    rows = slice(start - first, stop - first)
                    output[rows].add_(_applied(layer, update, inputs[0][rows]), alpha=scale)

        return add

    def _place(self, file: LoraFile) -> _Updates:
        placed: dict[Layer, LowRank] = {}
        for name, update in file.updates[self._part].items():
            layer = self._layer(file, name)
            if layer in placed:
                raise LoraRefused(
                    f"LoRA {file.name!r} can't be used: {update.key} changes the same layer as {placed[layer].key}",
                    "loras",
                )
            placed[layer] = self._placed(file, layer, update)
        return placed

    def _layer(self, file: LoraFile, name: str) -> Layer:
        layer = self._layers.get(name)
        if layer is None:
            key = file.updates[self._part][name].key
            raise LoraRefused(f"LoRA {file.name!r} is for another kind of model: this one has no layer {key}", "loras")
        return layer

    def _placed(self, file: LoraFile, layer: Layer, update: LowRank) -> LowRank:
        """An update on the device, in the weight's dtype and shape: trainers swap linear layers and 1x1 kernels."""
        shape, dtype = weight_layout(layer)
        down, up = update.down, update.up
        if len(shape) == 2 and down.shape[2:].numel() == 1:
            down, up = down.flatten(1), up.flatten(1)
        elif len(shape) == 4 and down.ndim == 2:
            down, up = down[..., None, None], up[..., None, None]
        if (up.shape[0], *down.shape[1:]) != shape:
            raise LoraRefused(
                f"LoRA {file.name!r} is for another kind of model: {update.key} changes a weight of shape "
                f"{(up.shape[0], *down.shape[1:])}, this model's is {tuple(shape)}",
                "loras",
            )
        place = self._device, dtype
        return LowRank(down.to(*place), up.to(*place), update.scale, update.key)


def _applied(layer: Layer, update: LowRank, states: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, Conv2d):
        low = conv2d(states, update.down, None, layer.stride, layer.padding, layer.dilation)
        return conv2d(low, update.up)
    return linear(linear(states, update.down), update.up)
