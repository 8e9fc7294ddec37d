"""A denoiser's weights: as they were read, and as models on a device, which others of their shape can be copied into.

Knows nothing of files' names, hubs or who asks.
"""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel

from deployments.engine.checkpoint_spec import Family
from deployments.engine.checkpoint_tensors import Tensors, check_tensors, fill
from deployments.engine.errors import CheckpointError


@dataclass(frozen=True, slots=True, eq=False)
class ModelTensors:
    """What a model is made of. config: checked, of config_file; tensors: by the model's own names, of file."""

    config: Mapping[str, Any]
    config_file: Path
    tensors: Tensors
    file: Path


@dataclass(frozen=True, slots=True, eq=False)
class DenoiserTensors:
    """A checkpoint's UNet and VAE in host memory or mapped to their files. The rest as in DenoiserWeights."""

    family: Family
    unet: ModelTensors
    vae: ModelTensors
    scheduler_config: dict[str, Any]
    force_zeros_for_empty_prompt: bool
    requires_aesthetics_score: bool
    hash: str


@dataclass(frozen=True, slots=True, eq=False)
class DenoiserWeights:
    """A checkpoint's UNet and VAE on the device, in evaluation mode, without gradients.

    scheduler_config: scheduler/scheduler_config.json, class name included, with what the settings say in its place.
    force_zeros_for_empty_prompt, requires_aesthetics_score: as in model_index.json.
    hash: sha256 (hex) over the UNet's weight files (over the whole of a single file), for manifests.
    """

    family: Family
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    scheduler_config: dict[str, Any]
    force_zeros_for_empty_prompt: bool
    requires_aesthetics_score: bool
    hash: str


def placed(read: DenoiserTensors, device: torch.device, dtype: torch.dtype) -> DenoiserWeights:
    """New models on the device. Runs in the thread that owns it.

    Raises CheckpointError if a tensor is missing, left over or of another shape, or a configuration describes no model.
    """
    return DenoiserWeights(
        family=read.family,
        unet=_placed(UNet2DConditionModel, read.unet, device, dtype),
        vae=_placed(AutoencoderKL, read.vae, device, dtype),
        scheduler_config=read.scheduler_config,
        force_zeros_for_empty_prompt=read.force_zeros_for_empty_prompt,
        requires_aesthetics_score=read.requires_aesthetics_score,
        hash=read.hash,
    )


def can_refill(weights: DenoiserWeights, read: DenoiserTensors) -> bool:
    """Whether the models of `weights` are the ones that `read` would be put into, but for their values."""
    of_models = ((weights.unet, read.unet.config), (weights.vae, read.vae.config))
    return all(_architecture(type(of), of.config) == _architecture(type(of), config) for of, config in of_models)


def refilled(weights: DenoiserWeights, read: DenoiserTensors) -> DenoiserWeights:
    """`read` in the models of `weights`, whose tensors stay where they are: what was compiled over them stays valid.

    `weights` isn't to be used any more. Raises CheckpointError as `placed` does, with nothing copied by then.
    """
    models = ((weights.unet, read.unet), (weights.vae, read.vae))
    for model, of in models:
        check_tensors(model, of.tensors, of.file)
    with torch.no_grad():
        for model, of in models:
            for name, tensor in model.state_dict().items():
                tensor.copy_(of.tensors[name], non_blocking=True)
    return replace(
        weights,
        family=read.family,
        scheduler_config=read.scheduler_config,
        force_zeros_for_empty_prompt=read.force_zeros_for_empty_prompt,
        requires_aesthetics_score=read.requires_aesthetics_score,
        hash=read.hash,
    )


def _placed(model_class: Any, of: ModelTensors, device: torch.device, dtype: torch.dtype) -> Any:
    try:
        with init_empty_weights():
            # without the notes of whoever saved it, `_name_or_path` and the like
            model = model_class.from_config({k: v for k, v in of.config.items() if not k.startswith("_")})
    except Exception as error:
        # whatever values a stranger's file may have, and whatever they make the library trip over
        raise CheckpointError(f"{of.config_file}: describes no {model_class.__name__}: {error}") from error
    return fill(model, of.tensors, of.file, device, dtype)


def _architecture(model_class: Any, config: Mapping[str, Any]) -> str:
    """What a configuration says of a model, defaults included; but for the size it was trained at, which is unused."""
    known = inspect.signature(model_class.__init__).parameters.items()
    said = {name: config.get(name, of.default) for name, of in known if name not in ("self", "sample_size")}
    return json.dumps(said, sort_keys=True)
