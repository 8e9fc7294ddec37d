"""A denoiser's weights: as they were read, and as models on a device, which other weights can be copied into."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

from deployments.engine.checkpoints.tensors import Tensors, check_tensors, fill, fill_quantized, refill
from deployments.engine.config import MemoryPolicy
from deployments.engine.errors import CheckpointError
from deployments.engine.families.family import Family
from deployments.engine.memory.offload import DevicePlaces, Placement


@dataclass(frozen=True, slots=True, eq=False)
class ModelTensors:
    """A model's checked configuration and its tensors, by the model's names for them, with their files."""

    config: Mapping[str, Any]
    config_file: Path
    tensors: Tensors
    file: Path


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CheckpointFacts:
    """A checkpoint without its models.

    Attributes:
        scheduler_config: scheduler/scheduler_config.json, class name included, changed by the settings.
        force_zeros_for_empty_prompt: as in model_index.json.
        hash: SHA-256 (hex) over the UNet's weight files, or over the whole single file.
    """

    family: Family
    scheduler_config: dict[str, Any]
    force_zeros_for_empty_prompt: bool
    hash: str

    @property
    def facts(self) -> dict[str, Any]:
        """These, by name."""
        return {fact.name: getattr(self, fact.name) for fact in fields(CheckpointFacts)}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class DenoiserTensors(CheckpointFacts):
    """A checkpoint's UNet and VAE in host memory or mapped to their files."""

    unet: ModelTensors
    vae: ModelTensors


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class DenoiserWeights(CheckpointFacts):
    """A checkpoint's UNet and VAE, placed for a device, in evaluation mode, without gradients.

    Attributes:
        tiny: decodes in the VAE's place; on the device.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    placement: Placement
    tiny: AutoencoderTiny | None = None

    @property
    def time_ids(self) -> int:
        """Numbers that the UNet takes of an image's size and crop; 0 for none."""
        return len(self.family.time_ids)

    @property
    def pooled_channels(self) -> int | None:
        """Of the pooled embedding that the UNet takes; None for none."""
        config: Any = self.unet.config
        if not self.time_ids:
            return None
        return int(config.projection_class_embeddings_input_dim) - self.time_ids * int(config.addition_time_embed_dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceFor:
    """How models are placed.

    Attributes:
        places: the offloaded model that is on the device, of all denoisers there.
        quantized: whether UNets are.
    """

    device: torch.device
    dtype: torch.dtype
    vae_dtype: torch.dtype
    channels_last: bool = False
    quantized: bool = False
    policy: MemoryPolicy = "resident"
    places: DevicePlaces = field(default_factory=DevicePlaces)


def placed(read: DenoiserTensors, place: PlaceFor, tiny: AutoencoderTiny | None = None) -> DenoiserWeights:
    """New models. Runs in the thread that owns the device.

    Raises CheckpointError if a tensor is missing, left over, of another shape or not finite, or if a configuration
    describes no model.
    """
    where = place.device if place.policy == "resident" else torch.device("cpu")
    layout = torch.channels_last if place.channels_last else torch.preserve_format
    unet = placed_model(UNet2DConditionModel, read.unet, where, place.dtype, layout, quantized=place.quantized)
    vae = placed_model(AutoencoderKL, read.vae, where, place.vae_dtype, layout)
    placement = Placement(unet, vae, place.device, place.policy, place.places)
    return DenoiserWeights(unet=unet, vae=vae, placement=placement, tiny=tiny, **read.facts)


def can_refill(weights: DenoiserWeights, read: DenoiserTensors) -> bool:
    """Whether the models of `weights` are the ones that `read` would be put into, but for their values.

    Of models that come and go there are copies, and hooks that know them: these are made anew.
    """
    if not weights.placement.resident:
        return False
    of_models = ((weights.unet, read.unet.config), (weights.vae, read.vae.config))
    return all(_architecture(type(of), of.config) == _architecture(type(of), config) for of, config in of_models)


def refilled(weights: DenoiserWeights, read: DenoiserTensors) -> DenoiserWeights:
    """`read` in the models of `weights`, whose tensors stay where they are: what was compiled over them stays valid.

    `weights` isn't to be used any more. Raises CheckpointError as `placed` does; with nothing copied by then, unless a
    weight isn't finite.
    """
    models = ((weights.unet, read.unet), (weights.vae, read.vae))
    for model, of in models:
        check_tensors(model, of.tensors, of.file)
    for model, of in models:
        refill(model, of.tensors, of.file)
    return replace(weights, **read.facts)


def placed_model(
    model_class: Any,
    of: ModelTensors,
    device: torch.device,
    dtype: torch.dtype,
    layout: torch.memory_format = torch.preserve_format,
    *,
    quantized: bool = False,
) -> Any:
    """A new model of diffusers' class on the device, its convolutions in a memory format. Raises as `placed` does."""
    try:
        with init_empty_weights():
            # without the notes of whoever saved it, `_name_or_path` and the like
            model = model_class.from_config({k: v for k, v in of.config.items() if not k.startswith("_")})
    except Exception as error:
        # whatever values a stranger's file may have, and whatever they make the library trip over
        raise CheckpointError(f"{of.config_file}: describes no {model_class.__name__}: {error}") from error
    if not quantized:
        return fill(model, of.tensors, of.file, device, dtype, layout)
    filled = fill_quantized(model, of.tensors, of.file, device, dtype)
    return filled if layout is torch.preserve_format else filled.to(memory_format=layout)


def _architecture(model_class: Any, config: Mapping[str, Any]) -> str:
    """A model's configuration with defaults, without sample_size, which is unused."""
    known = inspect.signature(model_class.__init__).parameters.items()
    said = {name: config.get(name, of.default) for name, of in known if name not in ("self", "sample_size")}
    return json.dumps(said, sort_keys=True)
