"""Whether a quantised UNet still computes what the weights do that it was quantised from.

Measured when a checkpoint is first loaded, by one forward of each. The unquantised UNet is never on the device as a
whole: its linears' weights come one after the other, each for as long as it is multiplied by.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import linear

from deployments.engine.checkpoints.denoiser_weights import DenoiserWeights
from deployments.engine.checkpoints.tensors import Tensors
from deployments.engine.errors import CheckpointError
from deployments.engine.quantization import QuantizedLinear, quantized_linears

BOUND = 0.03
"""Most mean difference of the two outputs, as a fraction of the unquantised one's standard deviation."""

_CELLS = 8  # a side of the latents
_TOKENS = 77
_TIMESTEP = 500.0


def check_likeness(checkpoint: str, weights: DenoiserWeights, tensors: Tensors) -> float:
    """The mean difference of the UNet's output, as a fraction of its standard deviation.

    Args:
        checkpoint: its name, for the message.
        weights: quantised, on the device.
        tensors: of the UNet, which it was quantised from.

    Raises:
        CheckpointError: the difference is more than BOUND, or no number.
    """
    quantized = _fixed_forward(weights)
    with _unquantized(weights.unet, tensors):
        wanted = _fixed_forward(weights)
    off = ((quantized - wanted).abs().mean() / wanted.std()).item()
    if not off <= BOUND:  # NaN isn't either
        raise CheckpointError(
            f"checkpoint {checkpoint!r} can't be quantised: its UNet's output is then {off:.2g} of its spread off, "
            f"{BOUND:g} is allowed. Set quantize: none for its stage, or take it out of the stage's models"
        )
    return off


def _fixed_forward(weights: DenoiserWeights) -> torch.Tensor:
    """The UNet's output for inputs that are always the same, (1, channels, 8, 8), float32."""
    unet, device = weights.unet, weights.placement.device
    config: Any = unet.config
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(device, unet.dtype)

    added = None
    if weights.pooled_channels is not None:
        added = {"text_embeds": random(1, weights.pooled_channels), "time_ids": random(1, weights.time_ids)}
    with torch.no_grad():
        weights.placement.bring_unet()
        output: torch.Tensor = unet(
            random(1, config.in_channels, _CELLS, _CELLS),
            torch.tensor([_TIMESTEP], device=device, dtype=torch.float32),
            random(1, _TOKENS, config.cross_attention_dim),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
    return output.float()


@contextmanager
def _unquantized(unet: torch.nn.Module, tensors: Tensors) -> Iterator[None]:
    hooks = [
        module.register_forward_hook(_multiply_by(tensors[f"{name}.weight"], tensors.get(f"{name}.bias")))
        for name, module in quantized_linears(unet)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _multiply_by(
    weight: torch.Tensor, bias: torch.Tensor | None
) -> Callable[[QuantizedLinear, tuple[Any, ...], torch.Tensor], torch.Tensor]:
    """A hook that puts the product with these weights in the place of a linear's output.

    It reads nothing of the module: offloaded weights have left again by then.
    """

    def replace_output(_: QuantizedLinear, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        device, dtype = output.device, output.dtype
        return linear(inputs[0], weight.to(device, dtype), None if bias is None else bias.to(device, dtype))

    return replace_output
