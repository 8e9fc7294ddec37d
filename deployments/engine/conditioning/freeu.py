"""FreeU (arXiv:2309.11497) for single rows: what the UNet's way up takes from below, and from its skip connections.

At its first two levels half of the channels from below are multiplied by a factor, and the lowest frequencies of the
skip connections by another. As diffusers' `enable_freeu`, whose four bins of a Fourier transform are projected onto
here: that is all that it changes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from deployments.engine.checkpoints.denoiser_weights import DenoiserWeights
from deployments.engine.conditioning.protocol import ConditionedRow, LaneCondition, Timeline
from deployments.engine.parameters import NO_FREEU, FreeU
from deployments.engine.row_threads import rows_here
from deployments.engine.types import DenoiseRequest
from deployments.engine.unet import UnetInputs

_LEVELS = 2


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer of the way up: its module, whose input's first channels are those from below, and how many these are."""

    module: torch.nn.Module
    below: int


@dataclass(frozen=True, slots=True, eq=False)
class LaneFreeU(LaneCondition):
    """A lane with FreeU, at all of its steps.

    Attributes:
        levels: the layers of each level.
        device: of the UNet.
    """

    weights: None
    span: range
    origin: tuple[object, ...]
    levels: tuple[tuple[_Layer, ...], ...]
    device: torch.device
    freeu: FreeU

    @classmethod
    def lay_out(cls, rows: "Sequence[ConditionedRow[LaneFreeU]]", bucket: int, *, pinned: bool) -> "BatchFreeU":
        """As LaneCondition.lay_out; every row of the bucket is computed, whether pinned or not."""
        below, skipped = (torch.ones(_LEVELS, bucket, dtype=torch.float32) for _ in range(2))
        for row in rows:
            freeu = row.condition.freeu
            below[:, row.index] = torch.tensor((freeu.b1, freeu.b2), dtype=torch.float32)
            skipped[:, row.index] = torch.tensor((freeu.s1, freeu.s2), dtype=torch.float32)
        one = rows[0].condition
        shape = (_LEVELS, bucket, 1, 1, 1)
        return BatchFreeU(one.levels, below.view(shape).to(one.device), skipped.view(shape).to(one.device))


@dataclass(frozen=True, slots=True)
class BatchFreeU:
    """The factors of a batch's rows, 1 for those without; also its contribution to a step.

    Attributes:
        levels: the layers of each level.
        below, skipped: (levels, bucket, 1, 1, 1), float32, of the channels from below and of the low frequencies.
    """

    levels: tuple[tuple[_Layer, ...], ...]
    below: torch.Tensor
    skipped: torch.Tensor

    def contribution(self, inputs: UnetInputs) -> "BatchFreeU":
        """As BatchCondition.contribution: it doesn't depend on the step."""
        return self

    def arguments(self, rows: slice) -> Mapping[str, Any]:
        """As StepContribution.arguments: none."""
        return {}

    def hooked(self) -> AbstractContextManager[None]:
        """As StepContribution.hooked."""
        return self._hooked()

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        handles = [
            layer.module.register_forward_pre_hook(partial(self._weighed, level, layer.below))
            for level, layers in enumerate(self.levels)
            for layer in layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _weighed(
        self, level: int, count: int, _module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        states, *others = arguments
        rows = rows_here()
        weighed = states.clone()  # which keeps its memory format, and with it the others' bits
        weighed[:, : count // 2] *= self.below[level, rows].to(states.dtype)
        weighed[:, count:] = _filtered(states[:, count:], self.skipped[level, rows])
        return weighed, *others


def free_u(request: DenoiseRequest, checkpoint: DenoiserWeights, timeline: Timeline) -> tuple[LaneFreeU, ...]:
    """The condition of a lane with FreeU; none without."""
    freeu = request.freeu
    if freeu == NO_FREEU:
        return ()
    device = checkpoint.placement.device
    return (LaneFreeU(None, range(timeline.evaluations), (), _levels(checkpoint.unet), device, freeu),)


def _levels(unet: Any) -> tuple[tuple[_Layer, ...], ...]:
    """The layers of the first levels of the UNet's way up, as diffusers builds them."""
    widths = [*reversed(unet.config.block_out_channels)]
    return tuple(
        tuple(
            _Layer(layer, widths[level] if number else widths[max(level - 1, 0)])
            for number, layer in enumerate(unet.up_blocks[level].resnets)
        )
        for level in range(_LEVELS)
    )


def _filtered(states: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Multiply the lowest frequencies of rows by factors, (rows, 1, 1, 1); what has the factor 1 keeps its bits."""
    height, width = states.shape[-2:]
    waves = _lowest(height, width).to(states.device)
    whole = states.float()
    lowest = (whole.flatten(2) @ waves @ waves.T).view_as(whole)
    return torch.where(factors == 1, states, (whole + (factors - 1) * lowest).to(states.dtype))


@cache
def _lowest(height: int, width: int) -> torch.Tensor:
    """What is left of a picture by its transform's middle bins: its product with these and with their transpose.

    In each direction the middle is the frequencies -1 and 0, as diffusers' filter with its threshold of 1 has it, and
    0 alone where there is but one.

    Returns:
        (height * width, waves), float32.
    """
    y, x = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in (height, width)), indexing="ij")
    waves = []
    for down in (-1, 0) if height > 1 else (0,):
        for across in (-1, 0) if width > 1 else (0,):
            angles = 2 * math.pi * (down * y / height + across * x / width)
            waves += [angles.cos(), angles.sin()]
    return (torch.stack(waves).flatten(1).T / math.sqrt(height * width)).float()
