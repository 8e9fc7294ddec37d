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

# tensors of a lane between steps: latents, at most four past samples and outputs, a step's noise; for an image the
# mask, its latents and their noise
_LATENTS_OF_A_LANE = 9
# of the compiling process beside its model: inputs, and buffers for trying kernels; estimated
_COMPILING = 512 << 20
# whole float32 images while tiles are joined: the tiles (which overlap), their rows, the picture
_PICTURES = 4


Describe = Callable[[CheckpointSpec], Architecture]
Points = tuple[tuple[int, int], ...]  # (latent cells, bytes), ascending


class StepTrace(Protocol):
    """The memory of a kind of conditioning, traced on meta tensors without its weights.

    Its repr() must tell apart two whose traces differ.
    """

    def model(self, unet: Mapping[str, Any], channels: int, empty: Callable[[Any, Mapping[str, Any]], Any]) -> Any:
        """The model that runs beside a UNet; None if there is none.

        Args:
            unet: the UNet's configuration.
            channels: of the latents.
            empty: creates a model, on the meta device, of a class and a configuration.
        """
        ...

    def arguments(self, model: Any, inputs: UnetInputs) -> Mapping[str, Any]:
        """One step of the model; returns the keyword arguments that it adds to the UNet's forward."""
        ...

    def lane_numbers(self, unet: Mapping[str, Any]) -> int:
        """The most numbers of the UNet's dtype that a lane holds of it for each latent cell."""
        ...

    def row_numbers(self, unet: Mapping[str, Any]) -> int:
        """The most numbers of the UNet's dtype that a row holds of it whatever its size."""
        ...


@dataclass(frozen=True, slots=True)
class Footprint:
    """The memory of an architecture in one dtype, in bytes.

    Attributes:
        unet, vae: all weights of each.
        group: the UNet's weights that are on the device at once with "group_offload".
        module: likewise with "sequential_offload".
        steps: peaks of a UNet step by the latent cells of all its rows, with fused attention.
        alone: peaks of a step of one row, with the settings' attention.
        decodes: peaks of a decode by the latent cells of its images.
        tile: latent cells of a tile.
        widened: the VAE's weights in float32, if it decodes in that; else 0.
        conditions: the text of one row, and what else it holds whatever its size.
        extra: a lane's other conditions, for each latent cell.
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
        """The weights of UNet and VAE."""
        return self.unet + self.vae

    def unet_there(self, policy: MemoryPolicy) -> int:
        """The weights that are on the device during a step."""
        return {
            "resident": self.weights,
            "model_offload": self.unet,
            "group_offload": self.group,
            "sequential_offload": self.module,
        }[policy]

    def vae_there(self, policy: MemoryPolicy) -> int:
        """The weights that are on the device during a decode."""
        return self.weights if policy == "resident" else self.vae

    def step(self, rows: int, cells: int) -> int:
        """Peak activations of a UNet forward of `rows` rows of `cells` latent cells each.

        With sliced attention one row's scores exist at a time, however many rows there are.
        """
        scores = _interpolated(self.alone, cells) - _interpolated(self.steps, cells)
        return _interpolated(self.steps, rows * cells) + scores

    def decode(self, images: int, cells: int) -> int:
        """Peak activations of a decode of `images` images at once."""
        return _interpolated(self.decodes, images * cells) + self.widened

    def tiled_decode(self, cells: int) -> int:
        """Peak activations of decoding one image in tiles: one tile's, and the pixels of all."""
        if cells <= self.tile:
            return self.decode(1, cells)
        return self.decode(1, self.tile) + _PICTURES * 3 * 4 * LATENT_SCALE**2 * cells

    def lane(self, cells: int) -> int:
        """The memory of a lane between two steps."""
        return (_LATENTS_OF_A_LANE * 4 * 4 + self.extra) * cells + 2 * self.conditions

    def lanes(self, settings: EngineSettings, cells: int) -> int:
        """The memory of all lanes between two steps."""
        return settings.max_lanes * self.lane(cells)


def compiling_bytes(weights: int) -> int:
    """The GPU memory of the compiling process, beside its context, for its own copy of a model of `weights` bytes."""
    return weights + _COMPILING


def _interpolated(points: Sequence[tuple[int, int]], at: int) -> int:
    """A peak between traced ones, linear in the logarithms.

    A peak is the largest of sums of powers of `at`, which is convex in the logarithms: the result is never too low.
    """
    place = next((index for index, (traced, _) in enumerate(points[1:-1], 1) if at <= traced), len(points) - 1)
    (x0, y0), (x1, y1) = points[place - 1 : place + 1]
    slope = math.log(y1 / y0) / math.log(x1 / x0)
    return math.ceil(y0 * math.exp(slope * math.log(at / x0)))
