"""Whether a quantised UNet still does as the weights that it was quantised from.

Measured when a checkpoint is first loaded, by one forward of each. The unquantised UNet is never on the device as a
whole: its linears' weights come one after the other, each for as long as it is multiplied by. Knows loaded weights and
the tensors that they were made of; nothing of files or of who loads.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import linear

from deployments.engine.checkpoints.canary import fixed_forward
from deployments.engine.checkpoints.denoiser_weights import DenoiserWeights
from deployments.engine.checkpoints.tensors import Tensors
from deployments.engine.config import Quantize
from deployments.engine.errors import CheckpointError
from deployments.engine.quantization import QuantizedLinear, quantized_as, quantized_linears

BOUNDS: dict[Quantize, float] = {"int8": 0.03, "fp8": 0.06}
"""Of the spread of an output, the most that a quantised one may be off on average."""


def check_likeness(checkpoint: str, weights: DenoiserWeights, tensors: Tensors) -> float:
    """How far off the UNet is, of its output's spread; 0 if it isn't quantised. tensors: what it was made of.

    Raises CheckpointError where that is more than its bound, or no number.
    """
    kind = quantized_as(weights.unet)
    if kind == "none":
        return 0.0
    found = fixed_forward(weights)[1]
    with _unquantized(weights.unet, tensors):
        wanted = fixed_forward(weights)[1]
    off = ((found - wanted).abs().mean() / wanted.std()).item()
    if not off <= BOUNDS[kind]:  # NaN isn't either
        raise CheckpointError(
            f"checkpoint {checkpoint!r} doesn't bear quantize: {kind}: its UNet's output is {off:.2g} of its spread "
            f"off, {BOUNDS[kind]:g} is allowed. Set quantize: none for its stage, or take it out of the stage's models"
        )
    return off


@contextmanager
def _unquantized(unet: torch.nn.Module, tensors: Tensors) -> Iterator[None]:
    hooks = [
        module.register_forward_hook(_multiplied_by(tensors[f"{name}.weight"], tensors.get(f"{name}.bias")))
        for name, module in quantized_linears(unet)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _multiplied_by(
    weight: torch.Tensor, bias: torch.Tensor | None
) -> Callable[[QuantizedLinear, tuple[Any, ...], torch.Tensor], torch.Tensor]:
    """Nothing of the module itself: weights that come and go have gone by then."""

    def instead(_: QuantizedLinear, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        here = output.device, output.dtype
        return linear(inputs[0], weight.to(*here), None if bias is None else bias.to(*here))

    return instead
