"""Seamless pictures: convolutions see the picture's other side beyond its edge, as A1111's tiling has it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn import Conv2d
from torch.nn.functional import pad


@contextmanager
def seamless(model: torch.nn.Module, on: bool) -> Iterator[None]:
    """Let all convolutions of a model wrap around within the block, if it is `on`. In the device's thread."""
    layers = [layer for layer in model.modules() if isinstance(layer, Conv2d)] if on else []
    for layer in layers:
        layer.padding_mode = "circular"
    try:
        yield
    finally:
        for layer in layers:
            layer.padding_mode = "zeros"


def padded_for(layer: Conv2d, states: torch.Tensor) -> tuple[torch.Tensor, int | str | tuple[int, ...]]:
    """What a convolution like `layer` is to see of (rows, channels, height, width), and its padding then."""
    if layer.padding_mode == "zeros" or isinstance(layer.padding, str):
        return states, layer.padding
    rows, columns = layer.padding
    return pad(states, (columns, columns, rows, rows), mode="circular"), 0
