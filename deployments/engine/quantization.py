"""The linears of a UNet's transformers with weights in 8 bits, for memory; they are multiplied in the UNet's type.

Each output's weights are int8 numbers with one scale, which is its largest absolute weight / 127 (symmetric and by
output, as torchao's Int8WeightOnlyConfig). Activations stay as they are: in a text's token one large channel would take
the bits of all others.

Only transformers have many linears. The others say what the timestep is, and every layer goes by them. Convolutions
stay, SD1.5's transformers' of 1x1 too. residency/quantization_check.py measures whether a checkpoint bears it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch.nn import Conv2d, GroupNorm, LayerNorm, Linear, Parameter
from torch.nn.functional import linear

_TRANSFORMERS = ".attentions."
_LARGEST = 127


class QuantizedLinear(Linear):
    """A linear whose weight is made of two plain parameters, which whatever moves, counts or compiles a model finds.

    Not buffers: diffusers' group offloading with streams never takes the buffers of a group's modules off the device.

    Attributes:
        numbers: (outputs, inputs), int8.
        scales: (outputs, 1), in the type that the weight is multiplied in.
    """

    numbers: Parameter
    scales: Parameter

    def __init__(self, of: Linear) -> None:
        """Quantise a linear layer, which has the dtype for multiplying and may be on the meta device."""
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = of.in_features, of.out_features
        self.register_parameter("bias", of.bias)
        numbers, scales = _quantized(of.weight)
        self.numbers = Parameter(numbers, requires_grad=False)
        self.scales = Parameter(scales, requires_grad=False)

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]  # computed, never replaced
        """(outputs, inputs), in the scales' type."""
        return self.numbers * self.scales

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # Linear's name for it
        """Inputs (..., in_features) -> (..., out_features)."""
        return linear(input, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class _QuantizedWeight:
    """Takes the place of a whole weight: has its shape, and quantises what is copied into it."""

    linear: QuantizedLinear

    @property
    def shape(self) -> torch.Size:
        return self.linear.numbers.shape

    def copy_(self, weight: torch.Tensor, *, non_blocking: bool = False) -> None:
        scales = self.linear.scales
        numbers, new_scales = _quantized(weight.to(scales.device, scales.dtype, non_blocking=non_blocking))
        self.linear.numbers.copy_(numbers)
        scales.copy_(new_scales)


def quantize(unet: torch.nn.Module) -> None:
    """Put quantised linears in the places of those of a UNet's transformers, on any device, the meta one too.

    The UNet has to be in its type by then: a quantised one isn't to be brought to another.
    """
    for name, of in _quantizable(unet):
        parent, _, child = name.rpartition(".")
        setattr(unet.get_submodule(parent), child, QuantizedLinear(of))


def quantized_linears(model: torch.nn.Module) -> Iterator[tuple[str, QuantizedLinear]]:
    """The quantised linears of a model, by name."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            yield name, module


def weight_layout(layer: Linear | Conv2d | GroupNorm | LayerNorm) -> tuple[torch.Size, torch.dtype]:
    """Shape and type of the weight that a layer multiplies by; a quantised one's isn't computed for it."""
    if isinstance(layer, QuantizedLinear):
        return layer.numbers.shape, layer.scales.dtype
    return layer.weight.shape, layer.weight.dtype


def is_quantized(model: torch.nn.Module) -> bool:
    """Whether a model has quantised linears."""
    return next(quantized_linears(model), None) is not None


def weight_places(model: torch.nn.Module) -> Mapping[str, torch.Tensor | _QuantizedWeight]:
    """What each tensor of a checkpoint, by its name there, is copied into; each has a shape and `copy_`."""
    places: dict[str, torch.Tensor | _QuantizedWeight] = dict(model.state_dict())
    for name, of in quantized_linears(model):
        del places[f"{name}.numbers"], places[f"{name}.scales"]
        places[f"{name}.weight"] = _QuantizedWeight(of)
    return places


def saved_bytes(unet: torch.nn.Module) -> int:
    """How many bytes fewer the weights of a UNet will be, quantised."""
    weights = [of.weight for _, of in _quantizable(unet)]
    return sum(of.nbytes - of.numel() - of.itemsize * of.shape[0] for of in weights)


def add_scratch(unet: torch.nn.Module) -> None:
    """Let the linears of a UNet on the meta device make what quantised ones make: the weight, beside the output."""
    for _, of in _quantizable(unet):
        of.register_forward_pre_hook(_make_scratch)


def _make_scratch(of: Linear, inputs: tuple[torch.Tensor]) -> None:
    outputs = inputs[0].shape[:-1].numel() * of.out_features
    inputs[0].new_empty(of.weight.numel() + outputs)


def _quantizable(unet: torch.nn.Module) -> list[tuple[str, Linear]]:
    modules = unet.named_modules()
    return [(name, module) for name, module in modules if isinstance(module, Linear) and _TRANSFORMERS in name]


def _quantized(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers and scales of a weight (outputs, inputs)."""
    scales = (weight.abs().amax(1, keepdim=True) / _LARGEST).to(weight.dtype)
    # an output whose weights are all 0 has the scale 0; NaN has no number, and stays in the scale
    numbers = torch.where(scales > 0, weight / scales, 0.0).round_().clamp_(-_LARGEST, _LARGEST)
    return numbers.to(torch.int8), scales
