"""Single-file checkpoints in the layout of the original Stable Diffusion code ("LDM"): finds each model's tensors
and renames them as diffusers and transformers do.

The renaming is diffusers' own (diffusers.loaders.single_file_utils).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)

from deployments.engine.checkpoints.files import read_header
from deployments.engine.checkpoints.tensors import Tensors, read_tensors
from deployments.engine.errors import CheckpointError
from deployments.engine.families.family import TextEncoderComponent

UNET = "model.diffusion_model."
VAE = "first_stage_model."
_VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
# training leftovers beside open_clip's weights
_NOT_WEIGHTS = (".position_ids", ".logit_scale")


def unet_tensors(path: Path, config: Mapping[str, Any]) -> Tensors:
    """The UNet's tensors under diffusers' names; config: unet/config.json.

    Raises CheckpointError if the file holds no UNet, or lacks what SDXL's UNets have.
    """
    tensors = _read(path, (UNET,))
    try:
        converted: Tensors = convert_ldm_unet_checkpoint(tensors, dict(config))
    except KeyError as error:
        raise CheckpointError(f"{path}: no tensor {UNET}{error.args[0]}, which this family's UNets have") from error
    _check_all_used(path, tensors, converted)
    return converted


def vae_tensors(path: Path, config: Mapping[str, Any]) -> Tensors:
    """The VAE's tensors under diffusers' names, from a checkpoint or a file that holds a VAE alone.

    `config` is vae/config.json. Raises CheckpointError if the file holds no VAE.
    """
    inside = any(name.startswith(VAE) for name in read_header(path))
    tensors = _read(path, tuple(VAE + part for part in _VAE_PARTS) if inside else _VAE_PARTS)
    if any(name.startswith("encoder.down_blocks.") for name in tensors):
        return tensors  # diffusers' names already
    converted: Tensors = convert_ldm_vae_checkpoint(tensors, dict(config))
    _check_all_used(path, tensors, converted)
    return converted


def text_encoder_tensors(path: Path, encoder: TextEncoderComponent) -> Tensors:
    """A text encoder's tensors under transformers' names. Raises CheckpointError if the file holds no such encoder."""
    tensors = _read(path, (encoder.prefix,))
    if not encoder.open_clip:
        return dict(convert_ldm_clip_checkpoint(tensors))
    projection = f"{encoder.prefix}text_projection"
    if projection not in tensors:  # whose size says where queries, keys and values part
        raise CheckpointError(f"{path}: no tensor {projection}")
    return dict(convert_open_clip_checkpoint(None, tensors, prefix=encoder.prefix))


def _read(path: Path, prefixes: tuple[str, ...]) -> dict[str, torch.Tensor]:
    names = [name for name in read_header(path) if name.startswith(prefixes) and not name.endswith(_NOT_WEIGHTS)]
    if not names:
        raise CheckpointError(f"{path}: expected tensors named {prefixes[0]}..., found none")
    return read_tensors(path, names)


def _check_all_used(path: Path, tensors: Tensors, converted: Tensors) -> None:
    """Renaming is one to one: fewer names than before mean blocks that the configuration doesn't have."""
    if len(converted) != len(tensors):
        raise CheckpointError(
            f"{path}: of its {len(tensors)} tensors {len(converted)} fit the configuration; is it of another family?"
        )
