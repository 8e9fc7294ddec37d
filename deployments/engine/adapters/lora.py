"""Applies LoRAs of all kinds to single rows of a model's forward, without changing its weights.

Hooks on the changed layers add scale * up(down(x)), or what else layer_update.py and delta.py know, to the outputs of
the rows that have the LoRA. A row without LoRAs is computed as if there were none. Rows are computed in the same
portions whatever shares their batch, so that their bits don't depend on it.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch

from deployments.engine.adapters.layer_names import Layer, text_layers, unet_layers
from deployments.engine.adapters.layer_update import FittedUpdate
from deployments.engine.adapters.lora_file import LoraFile
from deployments.engine.adapters.lora_keys import Part
from deployments.engine.errors import LoraRefused
from deployments.engine.row_threads import rows_here

logger = logging.getLogger(__name__)

_Updates = Mapping[Layer, FittedUpdate]
_SHOWN = 3  # keys without a layer that the log names


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
    """The updates of one layer for rows start to stop (exclusive), with their strengths."""

    start: int
    stop: int
    updates: list[tuple[FittedUpdate, float]]

    def add(self, layer: Layer, states: torch.Tensor, output: torch.Tensor) -> None:
        """Add them to the layer's output for these rows."""
        own = output
        if len(self.updates) > 1 and any(update.rescales for update, _ in self.updates):
            own = output.clone()
        for update, strength in self.updates:
            update.add(layer, states, own, output, strength)


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
            of_rows: dict[Layer, _Run] = {}
            for adapter in adapters:
                for layer, update in adapter.updates.items():
                    of_rows.setdefault(layer, _Run(start, stop, [])).updates.append((update, adapter.weight))
            for layer, run in of_rows.items():
                runs.setdefault(layer, []).append(run)
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
            for run in runs:
                if first <= run.start < end:
                    rows = slice(run.start - first, run.stop - first)
                    run.add(layer, inputs[0][rows], output[rows])

        return add

    def _place(self, file: LoraFile) -> _Updates:
        placed: dict[Layer, FittedUpdate] = {}
        keys: dict[Layer, str] = {}
        of_part = file.updates[self._part]
        unknown = [update.key for name, update in of_part.items() if name not in self._layers]
        if 2 * len(unknown) > len(of_part):
            raise LoraRefused(
                f"LoRA {file.name!r} is for another kind of model: this one has no layer {unknown[0]}", "loras"
            )
        if unknown:  # trainers add layers that not every program's model has
            logger.warning(
                "LoRA %r: this model's %s lacks %d of its %d layers, which have no effect: %s",
                file.name,
                self._part,
                len(unknown),
                len(of_part),
                ", ".join(unknown[:_SHOWN]),
            )
        for name, update in of_part.items():
            layer = self._layers.get(name)
            if layer is None:
                continue
            if layer in placed:
                raise LoraRefused(
                    f"LoRA {file.name!r} can't be used: {update.key} changes the same layer as {keys[layer]}",
                    "loras",
                )
            keys[layer] = update.key
            try:
                placed[layer] = update.fitted(layer, self._device)
            except ValueError as error:
                raise LoraRefused(f"LoRA {file.name!r} is for another kind of model: {error}", "loras") from None
        return placed
