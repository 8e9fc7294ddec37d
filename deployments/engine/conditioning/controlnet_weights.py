"""A ControlNet's weights: reading them into diffusers' model, the check that they fit a UNet, the memory of a step.

Safetensors only, checked as checkpoints are.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

from deployments.engine.checkpoints.denoiser_weights import ModelTensors, placed_model
from deployments.engine.checkpoints.tensors import Tensors, read_tensors
from deployments.engine.conditioning.controlnet_files import LDM_PREFIX, ControlnetSource
from deployments.engine.errors import CheckpointError
from deployments.engine.types import MAX_CONTROLS
from deployments.engine.unet import UnetInputs

_IMAGE_CHANNELS = 3
_HINT = "controlnet_cond_embedding."
_HINT_CHANNELS = (16, 32, 96, 256)  # of all published ones
# entries of the configuration that a ControlNet must have in common with its UNet
_SHARED = (
    "block_out_channels", "layers_per_block", "cross_attention_dim", "addition_embed_type", "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
)  # fmt: skip
# kinds of ControlNet that can't be used: an entry of their configuration, and the value that all others have
_OTHER_KINDS = {
    "global_pool_conditions": False,
    "controlnet_conditioning_channel_order": "rgb",
    "class_embed_type": None,
    "num_class_embeds": None,
    "encoder_hid_dim_type": None,
    "conditioning_channels": _IMAGE_CHANNELS,
}


def config_beside(
    unet: Mapping[str, Any], channels: int, hint_channels: tuple[int, ...] = _HINT_CHANNELS
) -> dict[str, Any]:
    """The configuration of a ControlNet for a UNet; `channels` of the latents."""
    known = inspect.signature(ControlNetModel.__init__).parameters
    shared = {name: unet[name] for name in known if name in unet}
    return shared | {"in_channels": channels, "conditioning_embedding_out_channels": hint_channels}


def read_controlnet(
    source: ControlnetSource, unet: Mapping[str, Any], channels: int, device: torch.device, dtype: torch.dtype
) -> ControlNetModel:
    """Read a ControlNet onto the device, in the thread that owns it.

    Args:
        source: its files.
        unet: the configuration of the UNet that it steers.
        channels: of the latents.
        device: for the model.
        dtype: of the model.

    Raises:
        CheckpointError: a tensor is missing, left over or of another shape.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in source.files:
        tensors |= read_tensors(file)
    file = source.files[0]
    if source.config is None:
        named = _in_diffusers_names(file, tensors, unet)
        config = config_beside(unet, channels, _hint_channels(file, named))
        return _placed(file, file, config, named, device, dtype)
    return _placed(file.parent / "config.json", file, source.config, tensors, device, dtype)


@dataclass(frozen=True, slots=True)
class ControlnetTrace:
    """The StepTrace of ControlNets: one runs at a time, and the sums of all residuals are kept."""

    def model(self, unet: Mapping[str, Any], channels: int, empty: Callable[[Any, Mapping[str, Any]], Any]) -> Any:
        """As StepTrace.model."""
        controlnet = empty(ControlNetModel, config_beside(unet, channels))
        controlnet.controlnet_cond_embedding = torch.nn.Identity()  # runs once a lane, and takes less than the VAE
        return controlnet

    def arguments(self, model: Any, inputs: UnetInputs) -> Mapping[str, Any]:
        """As StepTrace.arguments: the sums of all residuals, beside those of one more ControlNet."""
        rows, _, height, width = inputs.sample.shape
        seen = inputs.hidden_states.new_empty(rows, model.config.block_out_channels[0], height, width)
        sample = inputs.sample[:, : model.config.in_channels]
        positional = sample, inputs.timesteps, inputs.hidden_states, seen
        down, middle = model(*positional, added_cond_kwargs=inputs.added, return_dict=False)
        down, middle = tuple(torch.empty_like(level) for level in down), torch.empty_like(middle)
        model(*positional, added_cond_kwargs=inputs.added, return_dict=False)
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}

    def lane_numbers(self, unet: Mapping[str, Any]) -> int:
        """As StepTrace.lane_numbers: the embedded control images."""
        return MAX_CONTROLS * int(unet["block_out_channels"][0])

    def row_numbers(self, unet: Mapping[str, Any]) -> int:
        """As StepTrace.row_numbers: none besides."""
        return 0


def misfit(config: Mapping[str, Any], unet: Mapping[str, Any], channels: int) -> str | None:
    """Why a ControlNet can't steer a UNet; None if it can.

    Args:
        config: of the ControlNet's model.
        unet: of the UNet's model.
        channels: of the latents.
    """
    for key, usual in _OTHER_KINDS.items():
        if config.get(key, usual) != usual:
            return f"is of a kind that can't be used here: its {key} is {config[key]!r}"
    expected = {key: unet.get(key) for key in _SHARED} | {"in_channels": channels}
    for key, value in expected.items():
        if _plain(config.get(key)) != _plain(value):
            return f"is for another kind of model: its {key} is {_plain(config.get(key))}, this model's {_plain(value)}"
    return None


def _placed(
    config_file: Path, file: Path, config: Mapping[str, Any], tensors: Tensors, device: torch.device, dtype: torch.dtype
) -> ControlNetModel:
    model: ControlNetModel = placed_model(
        ControlNetModel, ModelTensors(config, config_file, tensors, file), device, dtype
    )
    return model


def _in_diffusers_names(file: Path, tensors: dict[str, torch.Tensor], unet: Mapping[str, Any]) -> Tensors:
    if any(name.startswith(_HINT) for name in tensors):
        return tensors
    inside = {name: tensor for name, tensor in tensors.items() if name.startswith(LDM_PREFIX)} or tensors
    try:
        named: dict[str, torch.Tensor | None] = convert_controlnet_checkpoint(dict(inside), dict(unet))
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"{file}: not the tensors of a ControlNet for this kind of model: {error}") from error
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def _hint_channels(file: Path, tensors: Tensors) -> tuple[int, ...]:
    """The channels of the control image's embedding, level by level, by the weights' shapes."""
    first = f"{_HINT}conv_in.weight"
    if first not in tensors:
        raise CheckpointError(f"{file}: no tensor {first}")
    widths = [int(tensors[first].shape[0])]
    while (name := f"{_HINT}blocks.{2 * len(widths) - 1}.weight") in tensors:
        widths.append(int(tensors[name].shape[0]))
    return tuple(widths)


def _plain(value: object) -> str:
    return json.dumps(value)
