"""Single-file checkpoints in the layout of the original Stable Diffusion code ("LDM").

Finds each model's tensors and renames them as diffusers and transformers do.

The renaming is diffusers' own (diffusers.loaders.single_file_utils). ComfyUI's scaled 8-bit floats, which have a scale
for each weight beside it, become 16-bit ones.
"""

import json
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
from deployments.engine.checkpoints.single_file_header import UNET, VAE
from deployments.engine.checkpoints.tensors import Tensors, read_tensors
from deployments.engine.errors import CheckpointError
from deployments.engine.families.family import TextEncoderComponent

_VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
# training leftovers beside open_clip's weights
_NOT_WEIGHTS = (".position_ids", ".logit_scale")
# ComfyUI's scales of weights, in its first form and its second; notes beside them, of which only the format matters
_SCALES = ("scale_weight", "weight_scale")
_FORMAT = ".comfy_quant"
_SCALED_NOTES = (".scaled_fp8", ".scale_input", ".input_scale", _FORMAT, *(f".{scale}" for scale in _SCALES))


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
    inside = any(name.startswith(VAE) for name in read_header(path).tensors)
    tensors = _read(path, tuple(VAE + part for part in _VAE_PARTS) if inside else _VAE_PARTS)
    if any(name.startswith("encoder.down_blocks.") for name in tensors):
        return tensors  # diffusers' names already
    try:
        converted: Tensors = convert_ldm_vae_checkpoint(tensors, dict(config))
    except KeyError as error:
        raise CheckpointError(f"{path}: no tensor {error.args[0]}, which a VAE has") from error
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
    inside = (name for name in read_header(path).tensors if name.startswith(prefixes))
    names = [name for name in inside if not name.endswith(_NOT_WEIGHTS)]
    if not names:
        raise CheckpointError(f"{path}: expected tensors named {prefixes[0]}..., found none")
    return _unscaled(path, read_tensors(path, names))


def _unscaled(path: Path, tensors: Tensors) -> dict[str, torch.Tensor]:
    """The weights alone, multiplied by their scales where they have some."""
    weights = {}
    for name, tensor in tensors.items():
        if name.endswith(_FORMAT):
            _check_format(path, name, tensor)
        if name.endswith(_SCALED_NOTES):
            continue
        layer = name.removesuffix("weight")
        scale = next((tensors[layer + key] for key in _SCALES if layer != name and layer + key in tensors), None)
        if scale is None:
            weights[name] = tensor
            continue
        if scale.numel() not in (1, len(tensor)):
            raise CheckpointError(
                f"{path}: the scale of {name} has shape {tuple(scale.shape)}, expected 1 or {len(tensor)} numbers"
            )
        scales = scale.to(torch.float32).reshape(-1, *[1] * (tensor.ndim - 1))
        weights[name] = (tensor.to(torch.float32) * scales).to(torch.float16)
    return weights


def _check_format(path: Path, name: str, note: torch.Tensor) -> None:
    """Raise CheckpointError unless the layer is of 8-bit floats; ComfyUI has kinds of 4 bits, too."""
    try:
        kind = json.loads(bytes(note.tolist()))["format"]
    except (ValueError, TypeError, KeyError):
        kind = None
    if kind not in ("float8_e4m3fn", "float8_e5m2"):
        raise CheckpointError(f"{path}: {name} says format {kind!r}, expected float8_e4m3fn or float8_e5m2")


def _check_all_used(path: Path, tensors: Tensors, converted: Tensors) -> None:
    """Renaming is one to one: fewer names than before mean blocks that the configuration doesn't have."""
    if len(converted) != len(tensors):
        raise CheckpointError(
            f"{path}: of its {len(tensors)} tensors {len(converted)} fit the configuration; is it of another family?"
        )
