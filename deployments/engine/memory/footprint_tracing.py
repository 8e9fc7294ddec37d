"""Traces the memory that an architecture takes, before anything of it is loaded.

Weights are counted, and the peaks of a UNet step and of a VAE decode traced, on meta tensors (memory_tracing.py) at a
few sizes. Knows architectures and settings; nothing of budgets or lanes.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel

from deployments.engine.attention import slice_attention
from deployments.engine.checkpoints.configs import Architecture
from deployments.engine.config import EngineSettings
from deployments.engine.device import vae_dtype
from deployments.engine.memory.footprint import Footprint, Points, StepTrace
from deployments.engine.memory.footprint_cache import kept
from deployments.engine.memory.offload import group_bytes, module_bytes
from deployments.engine.memory.peak_tracing import peak_bytes
from deployments.engine.quantization import add_scratch, saved_bytes
from deployments.engine.types import LATENT_SCALE
from deployments.engine.unet import UnetForward, UnetInputs

# sides, in latent cells, of the squares that peaks are traced at: 64, 256 and 1024 pixels
_SIDES = (8, 32, 128)
_TOKENS = 77  # of a prompt
# kernels' own buffers and the gaps that allocators leave, beyond the tensors that are traced
_WORKSPACE = 1.1


def footprint_of(
    architecture: Architecture, settings: EngineSettings, dtype: torch.dtype, traces: Sequence[StepTrace] = ()
) -> Footprint:
    """The memory that an architecture takes. traces: of what may condition its steps besides the text."""
    return _known(
        json.dumps([architecture.unet, architecture.vae], sort_keys=True),
        architecture.time_ids,
        dtype,
        vae_dtype(settings, dtype),
        settings.vae.tile,
        settings.channels_last,
        settings.attention == "sliced",
        tuple(traces),
        settings.quantize != "none",
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
    traces: Sequence[StepTrace],
    quantized: bool,
) -> Footprint:
    """configs: of UNet and VAE, as JSON. of_vae: its type."""
    unet_config, vae_config = json.loads(configs)
    unet = _empty(UNet2DConditionModel, unet_config, dtype, channels_last)
    vae = _empty(AutoencoderKL, vae_config, of_vae, channels_last)
    unet_bytes, vae_bytes = _weights(unet), _weights(vae)
    group, module = group_bytes(unet), module_bytes(unet)  # quantised, less
    if quantized:
        unet_bytes -= saved_bytes(unet)
        add_scratch(unet)

    def empty(model_class: Any, config: Mapping[str, Any]) -> Any:
        return _empty(model_class, config, dtype, channels_last)

    beside = [(trace, trace.model(unet.config, vae.config.latent_channels, empty)) for trace in traces]
    steps = alone = _traces(functools.partial(_step, unet, beside, time_ids))
    if sliced:
        for model in (unet, *(model for _, model in beside)):
            slice_attention(model)
        alone = _traces(functools.partial(_step, unet, beside, time_ids))
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
        extra=sum(trace.lane_numbers(unet.config) for trace in traces) * dtype.itemsize,
    )


def _traces(forward: Callable[[int], object]) -> Points:
    return tuple((side * side, int(_WORKSPACE * peak_bytes(functools.partial(forward, side)))) for side in _SIDES)


def _step(unet: Any, beside: Sequence[tuple[StepTrace, Any]], time_ids: int, side: int) -> object:
    config = unet.config
    text_embeds = None
    if time_ids:
        pooled = config.projection_class_embeddings_input_dim - time_ids * config.addition_time_embed_dim
        text_embeds = _like(unet, 1, pooled)
    inputs = UnetInputs(
        sample=_like(unet, 1, config.in_channels, side, side),
        timesteps=torch.empty(1, dtype=torch.float32, device="meta"),
        hidden_states=_like(unet, 1, _TOKENS, config.cross_attention_dim),
        text_embeds=text_embeds,
        time_ids=_like(unet, 1, time_ids) if time_ids else None,
    )
    further: dict[str, Any] = {}
    for trace, model in beside:
        further |= trace.arguments(model, inputs)
    return UnetForward(unet)(*inputs.all, **further)


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
