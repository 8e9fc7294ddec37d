"""From safetensors files into models, every tensor accounted for."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open

from deployments.engine.checkpoints.files import Weights
from deployments.engine.errors import CheckpointError
from deployments.engine.quantization import is_quantized, quantize, weight_places

Model = TypeVar("Model", bound=torch.nn.Module)
Tensors = Mapping[str, torch.Tensor]


def read_weights(weights: Weights) -> dict[str, torch.Tensor]:
    """All tensors of a component, of its file or its shards. Raises CheckpointError as `read_tensors` does."""
    tensors: dict[str, torch.Tensor] = {}
    for path in weights.files:
        tensors |= read_tensors(path)
    return tensors


def read_tensors(path: Path, names: Iterable[str] | None = None) -> dict[str, torch.Tensor]:
    """A safetensors file's tensors, all or those named, still mapped to the file.

    Raises CheckpointError if the library can't make sense of the file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file that can be read: {error}") from error


def fill(
    model: Model,
    tensors: Tensors,
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.preserve_format,
) -> Model:
    """Give an empty model its weights on the device, ready for inference.

    Copies, so that no weight stays mapped to a file that may change.

    Args:
        model: on the meta device.
        tensors: by the model's own names.
        path: where the tensors come from, for the message.
        device: where the model will be.
        dtype: of its weights.
        memory_format: of the convolutions' weights. Put into it later they would leave holes in the heap.

    Raises:
        CheckpointError: a tensor is missing, left over, of another shape, or not finite. Libraries go on then.
    """
    check_tensors(model, tensors, path)
    state = {
        name: tensor.to(
            device=device,
            dtype=dtype,
            copy=True,
            memory_format=memory_format if tensor.ndim == 4 else torch.preserve_format,
        )
        for name, tensor in tensors.items()
    }
    model.load_state_dict(state, strict=True, assign=True)
    check_finite(model, path)
    return model.to(device).eval().requires_grad_(False)


def fill_quantized(model: Model, tensors: Tensors, path: Path, device: torch.device, dtype: torch.dtype) -> Model:
    """As `fill`, of a UNet whose linears are to be quantised: never on the device as a whole in its own type."""
    torch.nn.Module.to(model, dtype)
    quantize(model)
    check_tensors(model, tensors, path)
    model.to_empty(device=device)
    refill(model, tensors, path)
    return model.eval().requires_grad_(False)


def refill(model: torch.nn.Module, tensors: Tensors, path: Path) -> None:
    """Copy tensors whose names and shapes were checked into a model's own. Raises CheckpointError as check_finite."""
    with torch.no_grad():
        for name, place in weight_places(model).items():
            place.copy_(tensors[name], non_blocking=True)
    check_finite(model, path)


def check_finite(model: torch.nn.Module, path: Path) -> None:
    """Raise CheckpointError, naming the first, if a weight is infinite or not a number in the model's own type."""
    weights = {name: of for name, of in model.state_dict().items() if of.is_floating_point()}
    # One sum a tensor and one look at the device: a sixth of the time that isfinite takes for all of them. Sums in
    # float32 would be of a copy in float32 on a CPU; in 16 bits a sum may run over, which makes a suspect more.
    sums = torch.stack([of.sum() for of in weights.values()]).tolist()
    suspects = [name for name, total in zip(weights, sums, strict=True) if not math.isfinite(total)]
    bad = [name for name in suspects if not bool(torch.isfinite(weights[name]).all())]
    if bad:
        dtype = str(weights[bad[0]].dtype).removeprefix("torch.")
        name = bad[0].replace(".scales", ".weight") if is_quantized(model) else bad[0]
        raise CheckpointError(f"{path}: tensor {name} holds values that are infinite or not a number in {dtype}")


def check_tensors(model: torch.nn.Module, tensors: Tensors, path: Path) -> None:
    """Raise CheckpointError unless these are the tensors that the model has, by name and shape."""
    expected = {name: place.shape for name, place in weight_places(model).items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if expected != found:
        raise CheckpointError(f"{path}: {_difference(expected, found)}")


def _difference(expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size]) -> str:
    """What disagrees, by the first name of each kind."""
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    reshaped = sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name])
    parts = []
    if missing:
        parts.append(f"{len(missing)} tensors missing ({missing[0]}, ...)")
    if unknown:
        parts.append(f"{len(unknown)} that its config.json has no place for ({unknown[0]}, ...)")
    if reshaped:
        shapes = f"expected {tuple(expected[reshaped[0]])}, found {tuple(found[reshaped[0]])}"
        parts.append(f"{len(reshaped)} of another shape ({reshaped[0]}: {shapes})")
    return "; ".join(parts)
