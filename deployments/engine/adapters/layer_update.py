"""What a LoRA file changes of one layer, fitted to a model's layer, and added to the layer's output."""

from dataclasses import dataclass

import torch
from torch.nn import Conv2d, GroupNorm, LayerNorm, Linear
from torch.nn.functional import conv2d, group_norm, layer_norm, linear

from deployments.engine.adapters.layer_names import Layer
from deployments.engine.quantization import weight_layout
from deployments.engine.tiling import padded_for


@dataclass(frozen=True, slots=True, eq=False)
class LayerUpdate:
    """A change of a layer: its weight by scale * up @ down + weight, its bias by bias.

    Args:
        key: one of the file's keys, for errors.
        down: (rank, in), or for a convolution (rank, in, height, width); None, as `up`, for none.
        up: (out, rank), or (out, rank, 1, 1).
        scale: of the product.
        weight: of the shape of the layer's weight; None for none.
        bias: (out,); None for none.
    """

    key: str
    down: torch.Tensor | None = None
    up: torch.Tensor | None = None
    scale: float = 1.0
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Those that it has."""
        return tuple(tensor for tensor in (self.down, self.up, self.weight, self.bias) if tensor is not None)

    def fitted(self, layer: Layer, device: torch.device) -> "LayerUpdate":
        """The update on the device, in the layer's dtype and shape: trainers swap linear layers and 1x1 kernels.

        Raises ValueError, which says what doesn't fit.
        """
        shape, dtype = weight_layout(layer) if isinstance(layer, Linear | Conv2d) else _norm_layout(layer)
        down, up, weight = self.down, self.up, self.weight
        if down is not None and up is not None:
            if len(shape) == 2 and down.shape[2:].numel() == 1:
                down, up = down.flatten(1), up.flatten(1)
            elif len(shape) == 4 and down.ndim == 2:
                down, up = down[..., None, None], up[..., None, None]
            self._expect(shape, (up.shape[0], *down.shape[1:]))
        if weight is not None:
            if _without_ones(weight.shape) == _without_ones(shape):
                weight = weight.reshape(shape)
            self._expect(shape, tuple(weight.shape))
        if self.bias is not None:
            self._expect(shape[:1], tuple(self.bias.shape))

        def to(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor.to(device, dtype)

        return LayerUpdate(self.key, to(down), to(up), self.scale, to(weight), to(self.bias))

    def add(self, layer: Layer, states: torch.Tensor, output: torch.Tensor, strength: float) -> None:
        """Add to the layer's output what the update at a strength makes of the layer's input; both of the same rows."""
        if self.down is not None and self.up is not None:
            output.add_(_product(layer, self.down, self.up, states), alpha=strength * self.scale)
        if self.weight is not None:
            output.add_(_difference(layer, self.weight, self.bias, states), alpha=strength)
        elif self.bias is not None:
            channels_last = isinstance(layer, Linear | LayerNorm)
            bias = self.bias if channels_last else self.bias.reshape(-1, *[1] * (output.ndim - 2))
            output.add_(bias, alpha=strength)

    def _expect(self, shape: torch.Size, found: tuple[int, ...]) -> None:
        if found != shape:
            raise ValueError(f"{self.key} changes a weight of shape {found}, this model's is {tuple(shape)}")


def _product(layer: Layer, down: torch.Tensor, up: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, Conv2d):
        states, padding = padded_for(layer, states)
        return conv2d(conv2d(states, down, None, layer.stride, padding, layer.dilation), up)
    return linear(linear(states, down), up)


def _difference(layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor:
    """The layer's output, had it this weight and bias."""
    match layer:
        case Conv2d():
            states, padding = padded_for(layer, states)
            return conv2d(states, weight, bias, layer.stride, padding, layer.dilation)
        case GroupNorm():
            return group_norm(states, layer.num_groups, weight, bias, layer.eps)
        case LayerNorm():
            return layer_norm(states, layer.normalized_shape, weight, bias, layer.eps)
        case _:
            return linear(states, weight, bias)


def _norm_layout(norm: GroupNorm | LayerNorm) -> tuple[torch.Size, torch.dtype]:
    return norm.weight.shape, norm.weight.dtype


def _without_ones(shape: torch.Size) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
