"""What an adapter's file changes of one layer, fitted to a model's layer, and added to the layer's output.

Whatever else a lane wears, a file's change is that of the checkpoint's own weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate.utils import align_module_device
from torch.nn import LayerNorm, Linear

from deployments.engine.adapters.delta import Delta
from deployments.engine.adapters.layer_names import Layer
from deployments.engine.quantization import weight_layout


class ScaledDelta(NamedTuple):
    """A delta and what it is multiplied by."""

    delta: Delta
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Rescaling:
    """Of a weight by channels, after its delta was added.

    DoRA (arXiv:2402.09353) has the weight's norms, (IA)3 (arXiv:2205.05638) factors less 1.

    Args:
        numbers: as many as there are channels, in any shape.
        is_norm: whether they are norms.
        on_input: whether they are the input's channels; None if their shape says so: (1, in, ...).
    """

    numbers: torch.Tensor
    is_norm: bool
    on_input: bool | None


@dataclass(frozen=True, slots=True, eq=False)
class LayerUpdate:
    """A change of a layer: its weight by deltas, then rescaled; its bias by bias.

    Args:
        key: one of the file's keys, for errors.
        deltas: of the weight; most kinds have one.
        bias: (out,); None for none.
        rescaling: of the weight; None for none.
    """

    key: str
    deltas: tuple[ScaledDelta, ...] = ()
    bias: torch.Tensor | None = None
    rescaling: Rescaling | None = None

    @property
    def nbytes(self) -> int:
        """Of its tensors."""
        tensors = [tensor for delta, _ in self.deltas for tensor in delta.tensors]
        tensors += [] if self.rescaling is None else [self.rescaling.numbers]
        tensors += [] if self.bias is None else [self.bias]
        return sum(tensor.nbytes for tensor in tensors)

    def fitted(self, layer: Layer, device: torch.device) -> "FittedUpdate":
        """The update for the layer, on the device and in the layer's dtype. Raises ValueError: what doesn't fit."""
        shape, dtype = weight_layout(layer)
        try:
            deltas = [ScaledDelta(delta.fitted(shape), scale) for delta, scale in self.deltas]
        except ValueError as error:
            raise ValueError(f"{self.key} changes a weight of shape {error}, this model's is {tuple(shape)}") from None
        if self.bias is not None and self.bias.shape != shape[:1]:
            raise ValueError(
                f"{self.key} changes a bias of shape {tuple(self.bias.shape)}, this model's is ({shape[0]},)"
            )
        bias, inputs, outputs = self.bias, None, None
        if self.rescaling is not None:
            with align_module_device(layer):  # brings what was offloaded
                factors, on_input = self._factors(self.rescaling, layer, deltas, device)
                if on_input:
                    inputs = factors
                else:
                    outputs = factors
                    if layer.bias is not None:  # which the output has in it, and which isn't rescaled
                        unscaled = -factors * layer.bias.to(device, torch.float32)
                        bias = unscaled if bias is None else unscaled + bias.to(device, torch.float32)

        def to(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(device, dtype)

        def by_channel(tensor: torch.Tensor | None) -> torch.Tensor | None:
            channels_last = isinstance(layer, Linear | LayerNorm)
            return to(tensor if tensor is None or channels_last else tensor[:, None, None])

        return FittedUpdate(
            tuple(ScaledDelta(delta.map(lambda tensor: tensor.to(device, dtype)), scale) for delta, scale in deltas),
            by_channel(bias),
            by_channel(inputs),
            by_channel(outputs),
        )

    def _factors(
        self, rescaling: Rescaling, layer: Layer, deltas: Sequence[ScaledDelta], device: torch.device
    ) -> tuple[torch.Tensor, bool]:
        """By how much of itself each channel grows (channels,), float32; and whether it is the input's."""
        weight = layer.weight.to(device, torch.float32)
        if weight.ndim == 1:
            raise ValueError(f"{self.key} rescales a norm, which nothing does")
        numbers = rescaling.numbers.to(device, torch.float32)
        on_input = rescaling.on_input
        if on_input is None:
            on_input = numbers.ndim > 1 and numbers.shape[0] == 1 and len(weight) > 1
        if numbers.numel() != weight.shape[int(on_input)]:
            raise ValueError(
                f"{self.key} rescales by numbers of shape {tuple(numbers.shape)}, "
                f"this model's weight is {tuple(weight.shape)}"
            )
        numbers = numbers.flatten()
        if not rescaling.is_norm:
            return numbers, on_input
        for delta, scale in deltas:
            weight = weight + scale * delta.map(lambda tensor: tensor.to(device, torch.float32)).weight()
        norms = (weight.transpose(0, 1) if on_input else weight).flatten(1).norm(dim=1)
        return torch.where(norms > 0, numbers / norms - 1, 0), on_input


@dataclass(frozen=True, slots=True, eq=False)
class FittedUpdate:
    """A layer's update on the device, in the layer's dtype.

    Args:
        deltas: of the weight.
        bias: by output channel, to be added to outputs; None for none.
        inputs: by input channel, by how much of itself the weight grows; None for none.
        outputs: the same by output channel.
    """

    deltas: tuple[ScaledDelta, ...]
    bias: torch.Tensor | None
    inputs: torch.Tensor | None
    outputs: torch.Tensor | None

    @property
    def rescales(self) -> bool:
        """Whether it needs the layer's own output."""
        return self.inputs is not None or self.outputs is not None

    def add(self, layer: Layer, states: torch.Tensor, own: torch.Tensor, output: torch.Tensor, strength: float) -> None:
        """Add to an output what the update at a strength makes of the layer's input. All of the same rows.

        Args:
            layer: that it is fitted to.
            states: the layer's input.
            own: the layer's output without adapters; may be `output` itself.
            output: to be added to.
            strength: of the adapter.
        """
        if self.outputs is not None:
            output.addcmul_(own, self.outputs, value=strength)
        if self.inputs is not None:
            states = states + states * self.inputs
            output.add_(layer.forward(states) - own, alpha=strength)  # forward alone: hooks would add to it, too
        for delta, scale in self.deltas:
            change = delta.output(layer, states)
            if self.outputs is not None:
                change = change + change * self.outputs
            output.add_(change, alpha=strength * scale)
        if self.bias is not None:
            output.add_(self.bias, alpha=strength)
