"""Models of transformers that see pictures: reading one from its folder, and its input."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from deployments.engine.checkpoints.files import find_weights, resolve_source
from deployments.engine.checkpoints.tensors import read_weights
from deployments.engine.errors import CheckpointError
from deployments.engine.types import Pixels

Model = TypeVar("Model", bound=PreTrainedModel)

_STEM = "model"
# what the architectures depend on; no other entry of a config.json is passed to transformers
TRANSFORMER_KEYS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps",
    "image_size", "patch_size", "num_channels", "projection_dim",
)  # fmt: skip


def weight_patterns(*folders: str) -> tuple[str, ...]:
    """The names of the models' weights on the hub; a folder ends with a slash, or is ""."""
    return tuple(f"{folder}{_STEM}{rest}.safetensors" for folder in folders for rest in ("", "-*-of-*"))


def model_folder(source: str, hub_patterns: Sequence[str]) -> Path:
    """The folder of a source: a path, a hub id or "package:<package>/<folder>". Raises CheckpointError."""
    folder = resolve_source(source, hub_patterns=tuple(hub_patterns))
    if not folder.is_dir():
        raise CheckpointError(f"{source}: expected a folder or a hub id, found a file")
    return folder


def read_model(model_class: type[Model], config: Any, folder: Path, device: torch.device, dtype: torch.dtype) -> Model:
    """Load a model by transformers, which renames saved tensors to its modules' names.

    Raises CheckpointError if a tensor is missing, left over or of another shape.
    """
    weights = find_weights(folder, _STEM, None)
    tensors = {
        name: tensor.clone() for name, tensor in read_weights(weights).items() if not name.endswith(".position_ids")
    }
    try:
        model, info = model_class.from_pretrained(
            None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True
        )
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{weights.files[0]}: doesn't fit {folder / 'config.json'}: {error}") from error
    wrong = sorted(info["missing_keys"] | info["unexpected_keys"])
    if wrong:
        raise CheckpointError(f"{weights.files[0]}: {len(wrong)} tensors missing or unknown ({wrong[0]}, ...)")
    loaded: Model = model.to(device).eval().requires_grad_(False)
    return loaded


def model_input(preprocess: Any, images: Sequence[Pixels], model: PreTrainedModel) -> torch.Tensor:
    """The model's input, (images, 3, height, width) in its own size, on its device and in its dtype."""
    pixels: torch.Tensor = preprocess(
        images=list(images), return_tensors="pt", input_data_format="channels_last"
    ).pixel_values
    return pixels.to(model.device, model.dtype)


def only(keys: Sequence[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a configuration that it has of `keys`."""
    return {key: config[key] for key in keys if key in config}
