"""Parts of a lane's image that have prompts of their own.

In each cell of the latents the outputs for all prompts are blended (MultiDiffusion, arXiv:2302.08113, for the prompts
of one window).
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from deployments.engine.errors import InvalidRequest
from deployments.engine.types import LATENT_SCALE, DenoiseRequest


class Blend(NamedTuple):
    """A lane whose image has regions.

    Args:
        lane: its index in the batch.
        row: of its prompt; its regions' follow.
        shares: as `shares_of` returns them.
        guided: whether it has a row of the negative prompt.
    """

    lane: int
    row: int
    shares: torch.Tensor
    guided: bool


def shares_of(request: DenoiseRequest) -> torch.Tensor:
    """The share of each output in each cell, the prompt's first: (1 + regions, 1, height / 8, width / 8), float32.

    They add up to 1. Where regions are, the prompt has `base_weight`; elsewhere it is alone.
    Raises InvalidRequest for a mask that hasn't the request's width and height.
    """
    height, width = request.height // LATENT_SCALE, request.width // LATENT_SCALE
    covered = torch.zeros(len(request.regions), 1, height, width, dtype=torch.float32)
    for index, region in enumerate(request.regions):
        mask, expected = region.mask, (request.height, request.width)
        if mask.shape != expected or mask.dtype != np.uint8:
            raise InvalidRequest(f"a region's mask is {mask.dtype} {mask.shape}, expected uint8 {expected}", "regions")
        cells = mask.reshape(height, LATENT_SCALE, width, LATENT_SCALE).mean((1, 3), dtype=np.float32)
        covered[index, 0] = torch.from_numpy(cells / 255)
    weights = torch.tensor([region.weight for region in request.regions], dtype=torch.float32)
    base = 1 - (1 - request.base_weight) * covered.sum(0, keepdim=True).clamp(max=1)
    shares = torch.cat([base, weights.view(-1, 1, 1, 1) * covered])
    return shares / shares.sum(0)


def origin_of(request: DenoiseRequest) -> list[tuple[object, ...]]:
    """What a lane's numbers depend on because of its regions, besides their prompts."""
    if not request.regions:
        return []
    masks = [(hashlib.sha256(region.mask.tobytes()).hexdigest(), region.weight) for region in request.regions]
    return [("regions", request.base_weight, *masks)]


def blended(
    negative: torch.Tensor, positive: torch.Tensor, outputs: torch.Tensor, blends: Sequence[Blend]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs for negative prompts and for prompts, both changed in place for the lanes with regions.

    Args:
        negative: (lanes, channels, height, width), float32; becomes the prompt's where there is no guidance.
        positive: likewise; becomes that of all the lane's prompts.
        outputs: (bucket, channels, height, width), float32, of all rows.
        blends: of the lanes that have regions.
    """
    for lane, row, shares, guided in blends:  # in each lane's own order: its bits don't depend on the others
        total = shares[0] * outputs[row]
        for number, share in enumerate(shares[1:], start=1):
            total += share * outputs[row + number]
        positive[lane] = total
        if not guided:
            negative[lane] = total
    return negative, positive
