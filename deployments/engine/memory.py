"""What fits the memory, computed before it is tried: budget and architectures -> rows, images and sizes.

Nothing is loaded for it: weights are counted, and the peaks of a UNet step and of a VAE decode traced, on meta tensors
(memory_tracing.py) at a few sizes; between them they are interpolated. One policy so far: everything resident. Knows
architectures and settings; nothing of lanes, queues or how weights are loaded.
"""

import functools
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

from deployments.engine.attention_slices import slice_attention
from deployments.engine.checkpoint_spec import CheckpointSpec
from deployments.engine.controlnet_weights import config_beside
from deployments.engine.errors import DoesNotFit
from deployments.engine.memory_budget import GIB, MemoryBudget
from deployments.engine.memory_limits import CELL, LargestSizes, SmallestRequest
from deployments.engine.memory_tracing import peak_bytes
from deployments.engine.request import MAX_CONTROLS, DenoiseRequest
from deployments.engine.settings import EngineSettings

logger = logging.getLogger(__name__)

# sides, in latent cells, of the squares that peaks are traced at: 64, 256 and 1024 pixels
_SIDES = (8, 32, 128)
_TOKENS = 77  # of a prompt
# what a lane holds between its steps: latents, at most four past samples and outputs, the noise of a step; of an image
# its mask, its latents and their noise
_LATENTS_OF_A_LANE = 9
_MOST_CELLS = (1 << 14) ** 2 // CELL  # an image of 16384 x 16384: none is larger
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

    unet, vae: their weights. steps: peaks of a UNet step by the latent cells of all its rows, with fused attention.
    alone: of one row, with the attention that the settings ask for. decodes: of a decode, by the cells of its images.
    widened: the VAE's weights once more, where it decodes in a wider type. conditions: the prompt of one row.
    seen: what a lane's ControlNets see in a latent cell.
    """

    unet: int
    vae: int
    steps: Points
    alone: Points
    decodes: Points
    widened: int
    conditions: int
    seen: int

    @property
    def weights(self) -> int:
        """Of all components."""
        return self.unet + self.vae

    def step(self, rows: int, cells: int) -> int:
        """Peak activations of a UNet forward of `rows` rows of `cells` latent cells each.

        A slice of attention's scores is there once, however many rows there are.
        """
        scores = _interpolated(self.alone, cells) - _interpolated(self.steps, cells)
        return _interpolated(self.steps, rows * cells) + scores

    def decode(self, images: int, cells: int) -> int:
        """Peak activations of a decode of `images` images at once."""
        return _interpolated(self.decodes, images * cells) + self.widened

    def lane(self, cells: int) -> int:
        """What a lane holds between two steps."""
        return (_LATENTS_OF_A_LANE * 4 * 4 + self.seen) * cells + 2 * self.conditions


class MemoryPlan:
    """What fits, for each checkpoint of a catalogue.

    The room for activations is what the weights of `resident_checkpoints` leave: the checkpoint's own, and the largest
    of the others'. So it doesn't depend on what happens to be loaded.
    """

    def __init__(
        self,
        settings: EngineSettings,
        dtype: torch.dtype,
        budget: MemoryBudget,
        catalogue: Mapping[str, CheckpointSpec],
        describe: Describe,
        *,
        steered: bool = False,
    ) -> None:
        """Reads the configurations of the whole catalogue; one that can't be read now is tried again at its loading.

        steered: by ControlNets, whose own weights the budget is already without.
        """
        self._settings = settings
        self._dtype = dtype
        self._budget = budget
        self._catalogue = catalogue
        self._describe = describe
        self._steered = steered
        self._footprints: dict[str, Footprint] = {}
        self._sizes: Mapping[str, LargestSizes] = {}
        self._rows: dict[tuple[str, int], int] = {}
        self._learn(catalogue)

    @property
    def largest_sizes(self) -> Mapping[str, LargestSizes]:
        """By checkpoint, of those that could be described."""
        return self._sizes

    def rows(self, checkpoint: str, cells: int) -> int:
        """Most UNet rows of a step, a power of two; 1 if not even that fits."""
        most = self._rows.get((checkpoint, cells))  # asked several times a step
        if most is None:
            most = self._most(self._settings.max_rows, checkpoint, lambda of, rows: of.step(rows, cells), cells)
            self._rows[checkpoint, cells] = most
        return most

    def images(self, checkpoint: str, cells: int) -> int:
        """Most images of a decode batch; 1 if not even that fits."""
        return self._most(self._settings.decode_batch, checkpoint, lambda of, images: of.decode(images, cells), cells)

    def check_loading(self, checkpoint: str, smallest: SmallestRequest) -> None:
        """Raise DoesNotFit if the weights, or the least that may be asked of them, can't be held."""
        if checkpoint not in self._footprints:
            self._learn([checkpoint])
        footprint = self._footprints.get(checkpoint)
        if footprint is None:
            return
        weights = f"the UNet ({_mib(footprint.unet)}) and the VAE ({_mib(footprint.vae)}) of {checkpoint!r}"
        if others := self._others(checkpoint):
            weights += f" and {_mib(others)} of other resident checkpoints"
        room = self._room(checkpoint)
        if room <= 0:
            raise self._refusal(f"the weights don't fit: {weights}", self._budget.bytes - room)
        cells, rows = -(-smallest.pixels // CELL), 2 if smallest.guided else 1
        step, decode = footprint.step(rows, cells), footprint.decode(1, cells)
        least = max(step, decode) + self._settings.max_lanes * footprint.lane(cells)
        if least > room:
            part = f"a UNet step of {rows} row(s)" if step >= decode else "the VAE's decode"
            what = f"{part} at {smallest.pixels} pixels, the least that may be asked, doesn't fit beside {weights}"
            raise self._refusal(what, self._budget.bytes - room + least)

    def check(self, request: DenoiseRequest) -> None:
        """Raise DoesNotFit for a request whose smallest batch can't be held."""
        sizes = self._sizes.get(request.checkpoint)
        if sizes is not None:
            sizes.check(request)

    def _learn(self, checkpoints: Iterable[str]) -> None:
        """Read what they need; all sizes follow anew, for each has less room beside one more that may be loaded."""
        for name in checkpoints:
            try:
                architecture = self._describe(self._catalogue[name])
                self._footprints[name] = footprint_of(architecture, self._settings, self._dtype, self._steered)
            except Exception as error:  # a stranger's file may hold anything; loading it says what is wrong
                logger.warning("checkpoint %s: what it needs isn't known (%s)", name, error)
        self._sizes = {name: self._largest_sizes(name) for name in self._footprints}
        self._rows.clear()

    def _most(self, limit: int, checkpoint: str, peak: Callable[[Footprint, int], int], cells: int) -> int:
        """`limit` halved until the peak of so many fits; at least 1."""
        footprint = self._footprints.get(checkpoint)
        if footprint is None:
            return limit
        left = self._left(checkpoint, cells)
        while limit > 1 and peak(footprint, limit) > left:
            limit //= 2
        return limit

    def _largest_sizes(self, checkpoint: str) -> LargestSizes:
        of, bucket = self._footprints[checkpoint], self._settings.reproducible_rows

        def largest(peak: Callable[[int], int]) -> int:
            fits, above = 0, _MOST_CELLS + 1
            while above - fits > 1:
                cells = (fits + above) // 2
                if peak(cells) <= self._left(checkpoint, cells):
                    fits = cells
                else:
                    above = cells
            return fits * CELL

        return LargestSizes(
            unguided=largest(lambda cells: of.step(1, cells)),
            guided=largest(lambda cells: of.step(2, cells)),
            reproducible=largest(lambda cells: of.step(bucket, cells)),
            decoded=largest(lambda cells: of.decode(1, cells)),
        )

    def _left(self, checkpoint: str, cells: int) -> int:
        """Bytes for the activations of a step or a decode, every lane having so many cells."""
        return self._room(checkpoint) - self._settings.max_lanes * self._footprints[checkpoint].lane(cells)

    def _room(self, checkpoint: str) -> int:
        """Bytes beside the weights."""
        return self._budget.bytes - self._footprints[checkpoint].weights - self._others(checkpoint)

    def _others(self, checkpoint: str) -> int:
        """Bytes of the other checkpoints that may be resident, at worst."""
        others = sorted(of.weights for name, of in self._footprints.items() if name != checkpoint)
        return sum(others[len(others) - min(len(others), self._settings.resident_checkpoints - 1) :])

    def _refusal(self, what: str, needed: int) -> DoesNotFit:
        settings = self._settings
        remedies = [f"more {self._budget.setting}"]
        if settings.resident_checkpoints > 1:
            remedies.append("fewer resident_checkpoints")
        if self._dtype == torch.float32:
            remedies.append("a dtype of 16 bits")
        if settings.max_lanes > 1:
            remedies.append("fewer max_lanes")
        return DoesNotFit(
            f"{what}: {_mib(needed)} in all, the limit is {_mib(self._budget.bytes)} ({self._budget.origin}). "
            f"What would help: {', '.join(remedies)}"
        )


def footprint_of(
    architecture: Architecture, settings: EngineSettings, dtype: torch.dtype, steered: bool = False
) -> Footprint:
    """The memory that an architecture takes, its VAE decoding as latents.py does; steered: as in MemoryPlan."""
    return _traced(
        json.dumps([architecture.unet, architecture.vae], sort_keys=True),
        architecture.time_ids,
        dtype,
        settings.channels_last,
        settings.attention == "sliced",
        steered,
    )


@functools.lru_cache(maxsize=16)  # checkpoints of one architecture are many; the traces of SDXL take seconds
def _traced(
    configs: str, time_ids: int, dtype: torch.dtype, channels_last: bool, sliced: bool, steered: bool
) -> Footprint:
    """configs: of UNet and VAE, as JSON."""
    unet, vae = (
        _empty(model_class, config, dtype, channels_last)
        for model_class, config in zip((UNet2DConditionModel, AutoencoderKL), json.loads(configs), strict=True)
    )
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
    widened = dtype == torch.float16 and bool(vae.config.force_upcast)
    if widened:
        torch.nn.Module.to(vae, torch.float32)
    return Footprint(
        unet=unet_bytes,
        vae=vae_bytes,
        steps=steps,
        alone=alone,
        decodes=_traces(functools.partial(_decode, vae)),
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


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.1f} MiB" if size < GIB else f"{size / GIB:,.2f} GiB"
