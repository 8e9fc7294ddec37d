"""The memory that an architecture takes, in bytes: weights, and peaks by size.

Peaks are known at a few sizes (footprint_tracing.py) and interpolated between them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from deployments.engine.checkpoints.configs import Architecture
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.config import EngineSettings, MemoryPolicy
from deployments.engine.types import LATENT_SCALE
from deployments.engine.unet import UnetInputs

# what a lane holds between its steps: latents, at most four past samples and outputs, the noise of a step; of an image
# its mask, its latents and their noise
_LATENTS_OF_A_LANE = 9
# beside its model: inputs, and what it tries kernels on; not measured
_COMPILING = 512 << 20
# of a whole image in 32 bits, while its tiles are joined: the tiles (which overlap), their rows, the picture
_PICTURES = 4


Describe = Callable[[CheckpointSpec], Architecture]
Points = tuple[tuple[int, int], ...]  # (latent cells, bytes), ascending


class StepTrace(Protocol):
    """What a kind of conditioning besides the text takes of memory, traced on meta tensors without its weights.

    Its repr() says all that the trace follows from.
    """

    def model(self, unet: Mapping[str, Any], channels: int, empty: Callable[[Any, Mapping[str, Any]], Any]) -> Any:
        """The model that runs beside a UNet.

        Args:
            unet: the UNet's configuration.
            channels: of the latents.
            empty: makes a model of a class and a configuration.
        """
        ...

    def arguments(self, model: Any, inputs: UnetInputs) -> Mapping[str, Any]:
        """Its part of one step: what the UNet's forward gets of it, as keyword arguments."""
        ...

    def lane_numbers(self, unet: Mapping[str, Any]) -> int:
        """Numbers of the UNet's type that a lane holds of it for each latent cell, at most."""
        ...


@dataclass(frozen=True, slots=True)
class Footprint:
    """The memory of an architecture in one type, in bytes.

    unet, vae: their weights. group, module: of the UNet's, what is on the device at once with "group_offload" and with
    "sequential_offload". steps: peaks of a UNet step by the latent cells of all its rows, with fused attention.
    alone: of one row, with the attention that the settings ask for. decodes: of a decode, by the cells of its images.
    tile: cells of a tile. widened: the VAE's weights in the wider type, where it decodes in one. conditions: the
    prompt of one row. extra: what a lane's other conditions are in a latent cell.
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
    extra: int

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
        return (_LATENTS_OF_A_LANE * 4 * 4 + self.extra) * cells + 2 * self.conditions

    def lanes(self, settings: EngineSettings, cells: int) -> int:
        """What all lanes hold between two steps."""
        return settings.max_lanes * self.lane(cells)


def compiling_bytes(weights: int) -> int:
    """What the process that compiles may fill on a GPU, beside its context: a model of so many bytes of its own."""
    return weights + _COMPILING


def _interpolated(points: Sequence[tuple[int, int]], at: int) -> int:
    """A peak between those that were traced, straight between their logarithms.

    A peak is the largest of sums of powers of `at`, which is convex so: never too low between two points.
    """
    place = next((index for index, (traced, _) in enumerate(points[1:-1], 1) if at <= traced), len(points) - 1)
    (x0, y0), (x1, y1) = points[place - 1 : place + 1]
    slope = math.log(y1 / y0) / math.log(x1 / x0)
    return math.ceil(y0 * math.exp(slope * math.log(at / x0)))
