"""From safetensors files into models, every tensor accounted for.

Knows nothing of families, folders or configurations.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open

from deployments.engine.checkpoints.files import Weights
from deployments.engine.config import Quantize
from deployments.engine.errors import CheckpointError
from deployments.engine.quantization import places, quantize

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


def fill(model: Model, tensors: Tensors, path: Path, device: torch.device, dtype: torch.dtype) -> Model:
    """Give an empty model its weights on the device, ready for inference; names and shapes have to agree.

    path: where the tensors come from, for the message. Copies, so that no weight stays mapped to a file that may
    change. Raises CheckpointError if a tensor is missing, left over or of another shape: libraries go on then, with
    random weights.
    """
    check_tensors(model, tensors, path)
    state = {name: tensor.to(device=device, dtype=dtype, copy=True) for name, tensor in tensors.items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.to(device).eval().requires_grad_(False)


def fill_quantized(
    model: Model, tensors: Tensors, path: Path, device: torch.device, dtype: torch.dtype, kind: Quantize
) -> Model:
    """As `fill`, of a UNet whose linears are to be quantised: never on the device as a whole in its own type."""
    torch.nn.Module.to(model, dtype)
    quantize(model, kind)
    check_tensors(model, tensors, path)
    model.to_empty(device=device)
    refill(model, tensors)
    return model.eval().requires_grad_(False)


def refill(model: torch.nn.Module, tensors: Tensors) -> None:
    """Copy tensors that were checked into those of a model, which stay where they are."""
    with torch.no_grad():
        for name, place in places(model).items():
            place.copy_(tensors[name], non_blocking=True)


def check_tensors(model: torch.nn.Module, tensors: Tensors, path: Path) -> None:
    """Raise CheckpointError unless these are the tensors that the model has, by name and shape."""
    expected = {name: place.shape for name, place in places(model).items()}
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
