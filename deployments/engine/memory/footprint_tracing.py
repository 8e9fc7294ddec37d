"""Traces the memory that an architecture takes, before anything of it is loaded.

Weights are counted, and the peaks of a UNet step and of a VAE decode traced, on meta tensors (memory_tracing.py) at a
few sizes. Knows architectures and settings; nothing of budgets or lanes.
"""

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

from deployments.engine.conditioning.controlnet_weights import config_beside
from deployments.engine.config import EngineSettings, Quantize
from deployments.engine.denoising.attention import slice_attention
from deployments.engine.device import vae_dtype
from deployments.engine.memory.footprint import Architecture, Footprint, Points
from deployments.engine.memory.footprint_cache import kept
from deployments.engine.memory.offload import group_bytes, module_bytes
from deployments.engine.memory.peak_tracing import peak_bytes
from deployments.engine.quantization import add_scratch, saved_bytes
from deployments.engine.types import LATENT_SCALE, MAX_CONTROLS

# sides, in latent cells, of the squares that peaks are traced at: 64, 256 and 1024 pixels
_SIDES = (8, 32, 128)
_TOKENS = 77  # of a prompt
# kernels' own buffers and the gaps that allocators leave, beyond the tensors that are traced
_WORKSPACE = 1.1


def footprint_of(
    architecture: Architecture, settings: EngineSettings, dtype: torch.dtype, steered: bool = False
) -> Footprint:
    """The memory that an architecture takes, its VAE decoding as latents.py does; steered: by ControlNets."""
    return _known(
        json.dumps([architecture.unet, architecture.vae], sort_keys=True),
        architecture.time_ids,
        dtype,
        vae_dtype(settings, dtype),
        settings.vae.tile,
        settings.channels_last,
        settings.attention == "sliced",
        steered,
        settings.quantize,
    )


@functools.lru_cache(maxsize=16)  # checkpoints of one architecture are many
def _known(*of: Any) -> Footprint:
    return kept(of, functools.partial(_traced, *of))


def _traced(
    configs: str,
    time_ids: int,
    dtype: torch.dtype,
    of_vae: torch.dtype,
    tile: int,
    channels_last: bool,
    sliced: bool,
    steered: bool,
    quantized: Quantize,
) -> Footprint:
    """configs: of UNet and VAE, as JSON. of_vae: its type."""
    unet_config, vae_config = json.loads(configs)
    unet = _empty(UNet2DConditionModel, unet_config, dtype, channels_last)
    vae = _empty(AutoencoderKL, vae_config, of_vae, channels_last)
    unet_bytes, vae_bytes = _weights(unet) - saved_bytes(unet, quantized), _weights(vae)
    group, module = group_bytes(unet), module_bytes(unet)  # quantised, less
    add_scratch(unet, quantized)
    controlnet = None
    if steered:
        config = config_beside(unet.config, vae.config.latent_channels)
        controlnet = _empty(ControlNetModel, config, dtype, channels_last)
        controlnet.controlnet_cond_embedding = torch.nn.Identity()  # once a lane, and less than the VAE takes
    steps = alone = _traces(functools.partial(_step, unet, controlnet, time_ids))
    if sliced:
        slice_attention(unet)
        if controlnet is not None:
            slice_attention(controlnet)
        alone = _traces(functools.partial(_step, unet, controlnet, time_ids))
    widened = of_vae == torch.float16 and bool(vae.config.force_upcast)
    if widened:
        torch.nn.Module.to(vae, torch.float32)
    return Footprint(
        unet=unet_bytes,
        vae=vae_bytes,
        group=min(group, unet_bytes),
        module=module,
        steps=steps,
        alone=alone,
        decodes=_traces(functools.partial(_decode, vae)),
        tile=(tile // LATENT_SCALE) ** 2,
        widened=_weights(vae) if widened else 0,  # its own stay beside them
        conditions=_TOKENS * unet.config.cross_attention_dim * dtype.itemsize,
        seen=MAX_CONTROLS * unet.config.block_out_channels[0] * dtype.itemsize if steered else 0,
        # of two rows, the outermost level's
    )


def _traces(forward: Callable[[int], object]) -> Points:
    return tuple((side * side, int(_WORKSPACE * peak_bytes(functools.partial(forward, side)))) for side in _SIDES)


def _step(unet: Any, controlnet: Any, time_ids: int, side: int) -> object:
    config = unet.config
    added = None
    if time_ids:
        pooled = config.projection_class_embeddings_input_dim - time_ids * config.addition_time_embed_dim
        added = {"text_embeds": _like(unet, 1, pooled), "time_ids": _like(unet, 1, time_ids)}
    text = _like(unet, 1, _TOKENS, config.cross_attention_dim)
    timesteps = torch.empty(1, device="meta")
    sample = _like(unet, 1, config.in_channels, side, side)
    residuals = {}
    if controlnet is not None:
        # what several say is added up: the sums, beside one more's own
        given = (
            sample[:, : controlnet.config.in_channels],
            timesteps,
            text,
            _like(unet, 1, config.block_out_channels[0], side, side),
        )
        down, middle = controlnet(*given, added_cond_kwargs=added, return_dict=False)
        down, middle = [torch.empty_like(level) for level in down], torch.empty_like(middle)
        controlnet(*given, added_cond_kwargs=added, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    return unet(sample, timesteps, text, added_cond_kwargs=added, **residuals)


def _decode(vae: Any, side: int) -> object:
    return vae.decode(_like(vae, 1, vae.config.latent_channels, side, side))


def _empty(model_class: Any, config: Mapping[str, Any], dtype: torch.dtype, channels_last: bool) -> Any:
    with init_empty_weights():
        model = model_class.from_config({k: v for k, v in config.items() if not k.startswith("_")}).eval()
    torch.nn.Module.to(model, dtype)  # diffusers' own warns of modules that stay in float32; these have none
    return model.to(memory_format=torch.channels_last) if channels_last else model


def _weights(model: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def _like(model: Any, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=model.dtype, device="meta")
