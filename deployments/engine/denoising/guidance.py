"""Classifier-free guidance (arXiv:2207.12598): one output of those for both prompts, lane by lane."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import pad

from deployments.engine.lanes.lane import Lane


class Composition(NamedTuple):
    """A lane whose prompt is composed of several.

    Args:
        lane: its index in the batch.
        row: of its first prompt; the others follow.
        weights: of the prompts.
    """

    lane: int
    row: int
    weights: tuple[float, ...]


def guided(negative: torch.Tensor, positive: torch.Tensor, scales: torch.Tensor, lanes: Sequence[Lane]) -> torch.Tensor:
    """Guided model outputs (lanes, channels, height, width), float32.

    Args:
        negative: outputs for the negative prompts, float32; for a lane without guidance the same as `positive`, which
            cancels its scale.
        positive: outputs for the prompts, float32.
        scales: (lanes, 1, 1, 1), float32.
        lanes: of the batch, whose guidance_rescale is applied (arXiv:2305.08891, 3.4).
    """
    outputs = negative + scales * (positive - negative)
    amounts = {index: lane.request.guidance_rescale for index, lane in enumerate(lanes) if lane.text.guided}
    return rescaled(outputs, positive, {index: amount for index, amount in amounts.items() if amount > 0})


def composed(
    negative: torch.Tensor, positive: torch.Tensor, outputs: torch.Tensor, compositions: Sequence[Composition]
) -> torch.Tensor:
    """The outputs for the prompts, where several are composed that of the composition (arXiv:2206.01714, 11).

    Args:
        negative: (lanes, channels, height, width), float32, outputs for the negative prompts.
        positive: likewise, those for the prompts, or for the first of several; changed in place.
        outputs: (bucket, channels, height, width), float32, of all rows.
        compositions: of the lanes that have several.
    """
    for lane, row, weights in compositions:  # in each lane's own order: its bits don't depend on the others
        unguided = negative[lane]
        total = unguided.clone()
        for number, weight in enumerate(weights):
            total += weight * (outputs[row + number] - unguided)
        positive[lane] = total
    return positive


def rescaled(outputs: torch.Tensor, positive: torch.Tensor, amounts: Mapping[int, float]) -> torch.Tensor:
    """Guided outputs, some rescaled in place to the standard deviation of the outputs for their prompts.

    Args:
        outputs: (lanes, channels, height, width), float32.
        positive: likewise, the outputs for the prompts.
        amounts: guidance_rescale, 0..1, by a lane's index.
    """
    for lane, amount in amounts.items():  # each alone: a lane's bits don't depend on who shares the reduction
        output = outputs[lane]
        outputs[lane] = amount * (output * (positive[lane].std() / output.std())) + (1 - amount) * output
    return outputs


def guidance_embedding(scales: Sequence[float], channels: int) -> torch.Tensor:
    """Sines and cosines of guidance scales: (rows, channels), float32, the condition of LCMs (arXiv:2310.04378)."""
    half = channels // 2
    falloff = torch.log(torch.tensor(10_000.0, dtype=torch.float32)) / (half - 1)
    weights = torch.tensor([scale - 1 for scale in scales], dtype=torch.float32)
    angles = (1000 * weights)[:, None] * torch.exp(-falloff * torch.arange(half))
    embedding = torch.cat([angles.sin(), angles.cos()], dim=1)
    return pad(embedding, (0, channels % 2))
