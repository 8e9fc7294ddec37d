"""The forms in which files write the change of a layer's weight, and how each is applied to a layer's input.

A product of two matrices (LoRA, LoCon), a whole difference, the elementwise product of two products (LoHa,
arXiv:2108.06098), and a Kronecker product (LoKr, arXiv:2309.14859).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch.nn import Conv2d, GroupNorm, LayerNorm
from torch.nn.functional import conv2d, group_norm, layer_norm, linear

from deployments.engine.adapters.layer_names import Layer
from deployments.engine.tiling import padded_for

_MOST_EXPANDED = 64  # rank of a LoHa that is written as one product


class Delta(Protocol):
    """The change of a weight. Its tensors are of one device and dtype."""

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Those that it is made of."""
        ...

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """The same with each tensor changed."""
        ...

    def fitted(self, shape: torch.Size) -> "Delta":
        """For a weight of this shape: trainers swap linear layers and 1x1 kernels, and flatten kernels.

        Raises ValueError, which says which shape it has.
        """
        ...

    def weight(self) -> torch.Tensor:
        """All of it, after `fitted` in the weight's shape."""
        ...

    def output(self, layer: Layer, states: torch.Tensor) -> torch.Tensor:
        """What the layer would return for `states` had it this weight and no bias. After `fitted` alone."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """The product of `up` and `down`.

    Args:
        down: (rank, in), or for a convolution (rank, in, height, width) or (rank, in * height * width).
        up: (out, rank), or (out, rank, 1, 1).
    """

    down: torch.Tensor
    up: torch.Tensor

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.down, self.up

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Product":
        return Product(change(self.down), change(self.up))

    def fitted(self, shape: torch.Size) -> "Product":
        up, rank = self.up.flatten(1), len(self.down)
        down = _reshaped(self.down, torch.Size([rank, *shape[1:]]))
        if down is None or len(up) != shape[0] or len(shape) == 1:
            raise ValueError(f"({len(up)}, {', '.join(map(str, self.down.shape[1:]))})")
        return Product(down, up if len(shape) == 2 else up[..., None, None])

    def weight(self) -> torch.Tensor:
        return torch.unflatten(self.up.flatten(1) @ self.down.flatten(1), 1, self.down.shape[1:])

    def output(self, layer: Layer, states: torch.Tensor) -> torch.Tensor:
        if isinstance(layer, Conv2d):
            states, padding = padded_for(layer, states)
            return conv2d(conv2d(states, self.down, None, layer.stride, padding, layer.dilation), self.up)
        return linear(linear(states, self.down), self.up)


@dataclass(frozen=True, slots=True, eq=False)
class Difference:
    """A whole difference, also of a norm's weight."""

    difference: torch.Tensor

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return (self.difference,)

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Difference":
        return Difference(change(self.difference))

    def fitted(self, shape: torch.Size) -> "Difference":
        reshaped = _reshaped(self.difference, shape)
        if reshaped is None:
            raise ValueError(f"{tuple(self.difference.shape)}")
        return Difference(reshaped)

    def weight(self) -> torch.Tensor:
        return self.difference

    def output(self, layer: Layer, states: torch.Tensor) -> torch.Tensor:
        return _output(layer, self.difference, states)


@dataclass(frozen=True, slots=True, eq=False)
class Hadamard:
    """The elementwise product of two products.

    It is made anew in each forward. That takes rank / tokens of what applying it takes; kept, it would be as large as
    the layer's weight.
    """

    first: Product
    second: Product

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return *self.first.tensors, *self.second.tensors

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Hadamard":
        return Hadamard(self.first.map(change), self.second.map(change))

    def fitted(self, shape: torch.Size) -> "Hadamard":
        return Hadamard(self.first.fitted(shape), self.second.fitted(shape))

    def weight(self) -> torch.Tensor:
        return self.first.weight() * self.second.weight()

    def output(self, layer: Layer, states: torch.Tensor) -> torch.Tensor:
        return _output(layer, self.weight(), states)


@dataclass(frozen=True, slots=True, eq=False)
class Kronecker:
    """The Kronecker product of a matrix and a weight.

    Args:
        first: (a, b).
        second: of a weight of shape (c, d, ...); the product's is (a * c, b * d, ...).
    """

    first: torch.Tensor
    second: Product | Difference

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self.first, *self.second.tensors

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Kronecker":
        return Kronecker(change(self.first), self.second.map(change))

    def fitted(self, shape: torch.Size) -> "Kronecker":
        rows, columns = self.first.shape
        if len(shape) == 1 or shape[0] % rows or shape[1] % columns:
            raise ValueError(f"{rows} x {columns} blocks")
        block = torch.Size([shape[0] // rows, shape[1] // columns, *shape[2:]])
        try:
            return Kronecker(self.first, self.second.fitted(block))
        except ValueError as error:
            raise ValueError(f"{rows} x {columns} blocks of {error}") from None

    def weight(self) -> torch.Tensor:
        second = self.second.weight()
        return torch.kron(self.first.reshape(*self.first.shape, *[1] * (second.ndim - 2)), second)

    def output(self, layer: Layer, states: torch.Tensor) -> torch.Tensor:
        """The second applied to each block of channels, then the first across the blocks."""
        columns = self.first.shape[1]
        if isinstance(layer, Conv2d):
            blocks = self.second.output(layer, states.unflatten(1, (columns, -1)).flatten(0, 1))
            blocks = blocks.unflatten(0, (-1, columns))
            mixed: torch.Tensor = (self.first @ blocks.flatten(2)).unflatten(2, blocks.shape[2:])
            return mixed.flatten(1, 2)
        blocks = self.second.output(layer, states.unflatten(-1, (columns, -1)))
        mixed = self.first @ blocks
        return mixed.flatten(-2)


def hadamard(first: Product, second: Product) -> Product | Hadamard:
    """The elementwise product of two products; of small rank it is one product, for half the arithmetic or less.

    The product's columns and rows are those of both, each with each: (a1 b1) * (a2 b2) = (a1 x a2) (b1 x b2), by
    rows and by columns (Khatri-Rao).
    """
    rank = len(first.down) * len(second.down)
    out, inputs = len(first.up), first.down[0].numel()
    if rank > _MOST_EXPANDED or 2 * rank * (out + inputs) > out * inputs:
        return Hadamard(first, second)
    one, other = (product.map(lambda tensor: tensor.flatten(1).to(torch.float32)) for product in (first, second))
    down = (one.down[:, None] * other.down[None]).flatten(0, 1).unflatten(1, first.down.shape[1:])
    return Product(down, (one.up[:, :, None] * other.up[:, None]).flatten(1))


def _output(layer: Layer, weight: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """The layer's output, had it this weight and no bias."""
    match layer:
        case Conv2d():
            states, padding = padded_for(layer, states)
            return conv2d(states, weight, None, layer.stride, padding, layer.dilation)
        case GroupNorm():
            return group_norm(states, layer.num_groups, weight, None, layer.eps)
        case LayerNorm():
            return layer_norm(states, layer.normalized_shape, weight, None, layer.eps)
        case _:
            return linear(states, weight)


def _reshaped(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor | None:
    """The tensor in this shape, from one with other ones or with all behind the first dimension flattened."""
    flat = tensor.ndim == 2 and tensor.shape == (shape[0], shape[1:].numel())
    if not flat and _without_ones(tensor.shape) != _without_ones(shape):
        return None
    return tensor.reshape(shape)


def _without_ones(shape: torch.Size) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
