"""Traces the memory that an architecture takes, before it is loaded.

Weights are counted, and the peaks of a UNet step and of a VAE decode traced, on meta tensors (peak_tracing.py) at a few
sizes. That takes seconds of a CPU, so footprints are cached in `$XDG_CACHE_HOME/darkroom/footprints`, in files named
after a hash of all that they depend on. If that folder can't be written, each process traces anew.
"""

import functools
import hashlib
import inspect
import json
import logging
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNet2DConditionModel

from deployments.engine.attention import slice_attention
from deployments.engine.checkpoints.configs import Architecture
from deployments.engine.config import EngineSettings
from deployments.engine.device import vae_dtype
from deployments.engine.memory.footprint import Footprint, Points, StepTrace
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
_POINTS = ("steps", "alone", "decodes")
# the code that footprints depend on, besides the traces': a change of it makes the cached ones stale
_SOURCES = (
    "memory/footprint_tracing.py",
    "memory/footprint.py",
    "memory/peak_tracing.py",
    "memory/offload.py",
    "attention.py",
    "unet.py",
    "quantization.py",
    "types.py",
)

logger = logging.getLogger(__name__)


def footprint_of(
    architecture: Architecture, settings: EngineSettings, dtype: torch.dtype, traces: Sequence[StepTrace] = ()
) -> Footprint:
    """The memory that an architecture takes.

    Args:
        architecture: configurations of its models.
        settings: of the engine.
        dtype: of weights and activations.
        traces: of the conditionings that may be in a step.
    """
    return _known(
        tuple(traces),
        json.dumps([architecture.unet, architecture.vae], sort_keys=True),
        architecture.time_ids,
        dtype,
        vae_dtype(settings, dtype),
        settings.vae.tile,
        settings.channels_last,
        settings.attention == "sliced",
        settings.quantize != "none",
    )


@functools.lru_cache(maxsize=16)  # checkpoints of one architecture are many
def _known(traces: tuple[StepTrace, ...], *of: Any) -> Footprint:
    code = {Path(inspect.getfile(type(trace))) for trace in traces}
    return cached_footprint((traces, *of), functools.partial(_traced, traces, *of), code)


def _traced(
    traces: Sequence[StepTrace],
    configs: str,
    time_ids: int,
    dtype: torch.dtype,
    of_vae: torch.dtype,
    tile: int,
    channels_last: bool,
    sliced: bool,
    quantized: bool,
) -> Footprint:
    """`configs` of UNet and VAE as JSON; `of_vae`: the VAE's dtype; `sliced`: the attention; others as in Footprint."""
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
        for model in (unet, *(model for _, model in beside if model is not None)):
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
        conditions=(_TOKENS * unet.config.cross_attention_dim + sum(trace.row_numbers(unet.config) for trace in traces))
        * dtype.itemsize,
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


def cached_footprint(of: Sequence[object], trace: Callable[[], Footprint], code: Collection[Path] = ()) -> Footprint:
    """The cached footprint, or a new one that is cached.

    Args:
        of: what the footprint depends on; str() must tell two apart.
        trace: computes it.
        code: files that it depends on, besides the engine's own.
    """
    path = _folder() / f"{_digest(of, code)}.json"
    try:
        return _read(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, TypeError, KeyError) as error:
        logger.warning("%s can't be used (%s): traced again", path, error)
    footprint = trace()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump(asdict(footprint), file)
        Path(file.name).replace(path)
    except OSError as error:
        logger.info("%s can't be written (%s): the next process traces again", path, error)
    return footprint


def _read(text: str) -> Footprint:
    known = json.loads(text)
    points = {name: tuple((int(cells), int(size)) for cells, size in known[name]) for name in _POINTS}
    return Footprint(**known | points)


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "darkroom" / "footprints"


def _digest(of: Sequence[object], code: Collection[Path]) -> str:
    digest = hashlib.sha256("\n".join(map(str, [*of, torch.__version__, diffusers.__version__])).encode())
    for path in (*(Path(__file__).parents[1] / name for name in _SOURCES), *sorted(code)):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]
