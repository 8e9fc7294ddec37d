"""The memory that an architecture takes, before anything of it is loaded: weights and peaks, in bytes.

Weights are counted, and the peaks of a UNet step and of a VAE decode traced, on meta tensors (memory_tracing.py) at a
few sizes; between them they are interpolated. Knows architectures and settings; nothing of budgets or lanes.
"""

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

from deployments.engine.attention_slices import slice_attention
from deployments.engine.checkpoint_spec import CheckpointSpec
from deployments.engine.controlnet_weights import config_beside
from deployments.engine.device import vae_dtype
from deployments.engine.memory_tracing import peak_bytes
from deployments.engine.offloading import group_bytes, module_bytes
from deployments.engine.request import LATENT_SCALE, MAX_CONTROLS
from deployments.engine.settings import EngineSettings, MemoryPolicy

# sides, in latent cells, of the squares that peaks are traced at: 64, 256 and 1024 pixels
_SIDES = (8, 32, 128)
_TOKENS = 77  # of a prompt
# what a lane holds between its steps: latents, at most four past samples and outputs, the noise of a step; of an image
# its mask, its latents and their noise
_LATENTS_OF_A_LANE = 9
# of a whole image in 32 bits, while its tiles are joined: the tiles (which overlap), their rows, the picture
_PICTURES = 4
# kernels' own buffers and the gaps that allocators leave, beyond the tensors that are traced
_WORKSPACE = 1.1


@dataclass(frozen=True, slots=True)
class Architecture:
    """A checkpoint's UNet and VAE as their configurations describe them, checked; no weights.

    time_ids: numbers that SDXL's UNets take of an image's size and crop; 0 for none.
    """

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    time_ids: int


Describe = Callable[[CheckpointSpec], Architecture]
Points = tuple[tuple[int, int], ...]  # (latent cells, bytes), ascending


@dataclass(frozen=True, slots=True)
class Footprint:
    """The memory of an architecture in one type, in bytes.

    unet, vae: their weights. group, module: of the UNet's, what is on the device at once with "group_offload" and with
    "sequential_offload". steps: peaks of a UNet step by the latent cells of all its rows, with fused attention.
    alone: of one row, with the attention that the settings ask for. decodes: of a decode, by the cells of its images.
    tile: cells of a tile. widened: the VAE's weights once more, where it decodes in a wider type. conditions: the
    prompt of one row. seen: what a lane's ControlNets see in a latent cell.
    """

    unet: int
    vae: int
    group: int
    module: int
    steps: Points
    alone: Points
    decodes: Points
    tile: int
    widened: int
    conditions: int
    seen: int

    @property
    def weights(self) -> int:
        """Of all components."""
        return self.unet + self.vae

    def unet_there(self, policy: MemoryPolicy) -> int:
        """Of the weights, what is on the device during a step."""
        return {
            "resident": self.weights,
            "model_offload": self.unet,
            "group_offload": self.group,
            "sequential_offload": self.module,
        }[policy]

    def vae_there(self, policy: MemoryPolicy) -> int:
        """The same during a decode."""
        return self.weights if policy == "resident" else self.vae

    def step(self, rows: int, cells: int) -> int:
        """Peak activations of a UNet forward of `rows` rows of `cells` latent cells each.

        A slice of attention's scores is there once, however many rows there are.
        """
        scores = _interpolated(self.alone, cells) - _interpolated(self.steps, cells)
        return _interpolated(self.steps, rows * cells) + scores

    def decode(self, images: int, cells: int) -> int:
        """Peak activations of a decode of `images` images at once."""
        return _interpolated(self.decodes, images * cells) + self.widened

    def tiled_decode(self, cells: int) -> int:
        """Of one image in tiles: the largest tile's, beside the pixels of all of them."""
        if cells <= self.tile:
            return self.decode(1, cells)
        return self.decode(1, self.tile) + _PICTURES * 3 * 4 * LATENT_SCALE**2 * cells

    def lane(self, cells: int) -> int:
        """What a lane holds between two steps."""
        return (_LATENTS_OF_A_LANE * 4 * 4 + self.seen) * cells + 2 * self.conditions


def footprint_of(
    architecture: Architecture, settings: EngineSettings, dtype: torch.dtype, steered: bool = False
) -> Footprint:
    """The memory that an architecture takes, its VAE decoding as latents.py does; steered: by ControlNets."""
    return _traced(
        json.dumps([architecture.unet, architecture.vae], sort_keys=True),
        architecture.time_ids,
        dtype,
        vae_dtype(settings, dtype),
        settings.vae.tile,
        settings.channels_last,
        settings.attention == "sliced",
        steered,
    )


@functools.lru_cache(maxsize=16)  # checkpoints of one architecture are many; the traces of SDXL take seconds
def _traced(
    configs: str,
    time_ids: int,
    dtype: torch.dtype,
    of_vae: torch.dtype,
    tile: int,
    channels_last: bool,
    sliced: bool,
    steered: bool,
) -> Footprint:
    """configs: of UNet and VAE, as JSON. of_vae: its type."""
    unet_config, vae_config = json.loads(configs)
    unet = _empty(UNet2DConditionModel, unet_config, dtype, channels_last)
    vae = _empty(AutoencoderKL, vae_config, of_vae, channels_last)
    unet_bytes, vae_bytes = _weights(unet), _weights(vae)
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
        group=group_bytes(unet),
        module=module_bytes(unet),
        steps=steps,
        alone=alone,
        decodes=_traces(functools.partial(_decode, vae)),
        tile=(tile // LATENT_SCALE) ** 2,
        widened=vae_bytes if widened else 0,
        conditions=_TOKENS * unet.config.cross_attention_dim * dtype.itemsize,
        seen=MAX_CONTROLS * unet.config.block_out_channels[0] * dtype.itemsize if steered else 0,
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


def _interpolated(points: Sequence[tuple[int, int]], at: int) -> int:
    """A peak between those that were traced, straight between their logarithms.

    A peak is the largest of sums of powers of `at`, which is convex so: never too low between two points.
    """
    place = next((index for index, (traced, _) in enumerate(points[1:-1], 1) if at <= traced), len(points) - 1)
    (x0, y0), (x1, y1) = points[place - 1 : place + 1]
    slope = math.log(y1 / y0) / math.log(x1 / x0)
    return math.ceil(y0 * math.exp(slope * math.log(at / x0)))
