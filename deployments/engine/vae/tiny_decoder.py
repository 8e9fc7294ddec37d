"""Loads a tiny decoder (TAESD), which decodes in a VAE's place."""

import torch
from diffusers import AutoencoderTiny

from deployments.engine.checkpoints.configs import read_component
from deployments.engine.checkpoints.denoiser_weights import ModelTensors, placed_model
from deployments.engine.checkpoints.files import DIFFUSERS_STEM, find_weights, resolve_source
from deployments.engine.checkpoints.loader import CONFIG_PATTERNS
from deployments.engine.checkpoints.tensors import read_weights
from deployments.engine.errors import CheckpointError
from deployments.engine.types import LATENT_SCALE

_CHANNELS = 4  # of SD's latents


def load_tiny_decoder(source: str, device: torch.device, dtype: torch.dtype) -> AutoencoderTiny:
    """The AutoencoderTiny of a diffusers folder or a hub id. Runs in the thread that owns the device.

    Raises CheckpointError, naming the file and what was expected.
    """
    folder = resolve_source(source, hub_patterns=(*CONFIG_PATTERNS, f"{DIFFUSERS_STEM}.safetensors"))
    if folder.is_file():
        raise CheckpointError(f"{folder}: expected the folder of an AutoencoderTiny, with its config.json")
    path = folder / "config.json"
    config = read_component(path, "AutoencoderTiny")
    scale = 2 ** (len(config.get("decoder_block_out_channels", ())) - 1)
    if config.get("latent_channels", _CHANNELS) != _CHANNELS or scale != LATENT_SCALE:
        raise CheckpointError(
            f"{path}: expected a decoder of {_CHANNELS} latent channels that enlarges {LATENT_SCALE} times, found "
            f"{config.get('latent_channels', _CHANNELS)!r} and {scale} times"
        )
    found = find_weights(folder, DIFFUSERS_STEM, None)
    tiny: AutoencoderTiny = placed_model(
        AutoencoderTiny, ModelTensors(config, path, read_weights(found), found.files[0]), device, dtype
    )
    return tiny
