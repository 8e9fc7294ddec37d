"""The linears of a UNet's transformers in 8 bits, through torchao, which is imported only where that is asked for.

"int8" keeps the weights so, with a scale for each output, and multiplies in the UNet's own type: for memory. What goes
in stays as it is: torchao's way to multiply in int8 waits for the GPU in each linear, and in a text's token one large
channel would take the bits of all others. "fp8" has both in 8 bits, with a scale for each token, and multiplies them
so: for speed. One scale for all tokens would be faster, but a row's bits would then depend on its neighbours.

Only transformers have many. The others say what the timestep is, with one row for each of the batch: fewer than the
kernels want, no time to save, and every layer goes by them. Convolutions stay, SD1.5's transformers' of 1x1 too.

Knows modules and tensors; nothing of checkpoints, or of how alike is alike enough (likeness.py).
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Linear

from deployments.engine.config import Quantize
from deployments.engine.errors import CheckpointError, DeviceUnavailable

_TRANSFORMERS = ".attentions."
_MULTIPLE = 16  # of inputs and of outputs: fp8's kernels take no others
_FP8_CAPABILITY = (8, 9)
# fp8's scale follows from a row's largest number, which counts as this at least: SDXL's empty prompt is all zeros, and
# torchao would divide by them. float16 has none much smaller
_LEAST = 2.0**-14
_HEADROOM = 2.0**7


class QuantizedLinear(Linear):
    """A linear of which the parts of torchao's quantised weight are the buffers: int8 or fp8 numbers, and scales.

    Whatever moves, counts, refills or compiles a model so finds plain tensors in it.
    """

    def __init__(self, linear: Linear, kind: Quantize) -> None:
        """linear: with its weight in the type that it is to be multiplied in; on the meta device for shapes alone."""
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features, self.kind = linear.in_features, linear.out_features, kind
        self.register_parameter("bias", linear.bias)
        quantized = _quantized(linear.weight, kind)
        self._type = type(quantized)
        self.parts, self._context = quantized.__tensor_flatten__()
        for part in self.parts:
            self.register_buffer(part, getattr(quantized, part))

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # Linear's name for it
        """Inputs (..., in_features) -> (..., out_features)."""
        if self.kind != "int8" or input.dtype != torch.float16:
            return super().forward(input)
        # torchao multiplies by the 8 bits before it scales: a sum some 130 times as large, which float16 may not hold
        output = torch.nn.functional.linear(input / _HEADROOM, self.weight) * _HEADROOM
        return output if self.bias is None else output + self.bias

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]  # is looked at and multiplied by, never replaced
        """torchao's tensor (outputs, inputs) over the buffers, of the type that it was quantised from."""
        parts = {part: getattr(self, part) for part in self.parts}
        weight: torch.Tensor = self._type.__tensor_unflatten__(parts, self._context, None, None)
        return weight


@dataclass(frozen=True, slots=True)
class _QuantizedWeight:
    """Takes a whole weight, as a tensor in its place would."""

    linear: QuantizedLinear

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.linear.out_features, self.linear.in_features))

    def copy_(self, weight: torch.Tensor, *, non_blocking: bool = False) -> None:
        into = self.linear.weight
        into.copy_(_quantized(weight.to(into.device, into.dtype, non_blocking=non_blocking), self.linear.kind))


def check_quantization(kind: Quantize, device: torch.device, dtype: torch.dtype) -> None:
    """Raise DeviceUnavailable if the device can't do it in such a type; CheckpointError where torchao isn't installed.

    The CPU does either, though it has no arithmetic for fp8: to see what becomes of images, not for speed.
    """
    if kind == "none":
        return
    _torchao()
    if kind != "fp8" or device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(device)
    if capability < _FP8_CAPABILITY:
        raise DeviceUnavailable(
            f"quantize is 'fp8', which takes a GPU of compute capability {_version(_FP8_CAPABILITY)} or more: "
            f"{torch.cuda.get_device_name(device)} has {_version(capability)}; set quantize: int8 or none"
        )
    if dtype != torch.bfloat16:
        raise DeviceUnavailable(
            f"quantize is 'fp8', whose products are bfloat16, and dtype is {str(dtype).removeprefix('torch.')}; "
            "set dtype: bfloat16, or quantize: int8 or none"
        )


def quantize(unet: torch.nn.Module, kind: Quantize) -> None:
    """Put quantised linears in the places of those of its transformers, on any device, the meta one too.

    The UNet has to be in its type by then: a quantised one isn't to be brought to another.
    """
    if kind == "none":
        return
    for name, linear in _quantizable(unet):
        parent, _, child = name.rpartition(".")
        setattr(unet.get_submodule(parent), child, QuantizedLinear(linear, kind))


def quantized_linears(model: torch.nn.Module) -> Iterator[tuple[str, QuantizedLinear]]:
    """Those of a model, by name."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            yield name, module


def quantized_as(model: torch.nn.Module) -> Quantize:
    """What its linears are."""
    return next((linear.kind for _, linear in quantized_linears(model)), "none")


def places(model: torch.nn.Module) -> Mapping[str, torch.Tensor | _QuantizedWeight]:
    """What each tensor of a checkpoint, by its name there, is copied into; each has a shape and `copy_`."""
    found: dict[str, torch.Tensor | _QuantizedWeight] = dict(model.state_dict())
    for name, linear in quantized_linears(model):
        for part in linear.parts:
            del found[f"{name}.{part}"]
        found[f"{name}.weight"] = _QuantizedWeight(linear)
    return found


def saved_bytes(unet: torch.nn.Module, kind: Quantize) -> int:
    """How many bytes fewer the weights of a UNet will be, quantised."""
    if kind == "none":
        return 0
    of_output = 5 if kind == "int8" else 4  # its scale, and int8's middle, which is always 0
    return sum(
        linear.weight.nbytes - linear.weight.numel() - of_output * linear.out_features
        for _, linear in _quantizable(unet)
    )


def add_scratch(unet: torch.nn.Module, kind: Quantize) -> None:
    """Let the linears of a UNet on the meta device make what quantised ones make besides their outputs, in one piece.

    Neither torchao nor its many operations are needed to plan what they take.
    """
    if kind == "none":
        return
    for _, linear in _quantizable(unet):
        linear.register_forward_pre_hook(_int8_scratch if kind == "int8" else _fp8_scratch)


def _int8_scratch(linear: Linear, inputs: tuple[torch.Tensor]) -> None:
    """The weight in the inputs' type, and the output once before it is scaled; in float16 the inputs divided, too."""
    outputs = inputs[0].shape[:-1].numel() * linear.out_features
    divided = inputs[0].numel() if inputs[0].dtype == torch.float16 else 0
    inputs[0].new_empty(linear.weight.numel() + 2 * outputs + divided)


def _fp8_scratch(linear: Linear, inputs: tuple[torch.Tensor]) -> None:
    """The inputs in float32, unless they are, the same scaled, and clamped, and in 8 bits."""
    each = 9 if inputs[0].dtype == torch.float32 else 13
    inputs[0].new_empty(each * inputs[0].numel(), dtype=torch.uint8)


def _quantizable(unet: torch.nn.Module) -> list[tuple[str, Linear]]:
    return [
        (name, module)
        for name, module in unet.named_modules()
        if isinstance(module, Linear)
        and _TRANSFORMERS in name
        and module.in_features % _MULTIPLE == 0
        and module.out_features % _MULTIPLE == 0
    ]


def _quantized(weight: torch.Tensor, kind: Quantize) -> Any:
    torchao = _torchao()
    by_row = torchao.PerRow()
    if kind == "int8":
        return torchao.Int8Tensor.from_hp(weight, granularity=by_row)
    # as torchao's own configuration makes them, which wants a GPU even to quantise
    from torchao.float8.inference import Float8MMConfig
    from torchao.quantization.quantize_.workflows import QuantizeTensorToFloat8Kwargs

    return torchao.Float8Tensor.from_hp(
        weight,
        granularity=by_row,
        mm_config=Float8MMConfig(use_fast_accum=True),
        hp_value_lb=_LEAST,
        act_quant_kwargs=QuantizeTensorToFloat8Kwargs(granularity=by_row, hp_value_lb=_LEAST),
    )


def _torchao() -> Any:
    # its kernels for other things don't load everywhere, and it says so each time
    logging.getLogger("torchao").setLevel(logging.ERROR)
    try:
        import torchao.quantization
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"quantize needs {error.name}, which isn't installed: pip install 'darkroom[quantize]'"
        ) from error
    return torchao.quantization


def _version(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
