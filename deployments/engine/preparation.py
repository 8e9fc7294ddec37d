"""Makes a lane of a ticket: sampler table, conditions, first latents.

Knows a denoiser and one ticket; nothing of batches or of the order in which lanes come.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from deployments.engine.denoiser import LATENT_SCALE, Denoiser
from deployments.engine.errors import InvalidRequest
from deployments.engine.lane import Lane, Ticket
from deployments.engine.latents import draw_noise, encode_image, generator_for
from deployments.engine.request import DenoiseRequest
from deployments.engine.samplers import SamplerTable, sampler_table


def table_for(request: DenoiseRequest, scheduler_config: Mapping[str, Any]) -> SamplerTable:
    """The sampler table of the part of the schedule that the request runs. Needs no device; raises InvalidRequest."""
    return sampler_table(
        scheduler_config,
        request.sampler,
        request.steps,
        denoising_start=request.denoising_start,
        denoising_end=request.denoising_end,
        strength=request.strength,
    )


def prepare_lane(ticket: Ticket, denoiser: Denoiser) -> Lane:
    """The ticket's lane on `denoiser`, ready for its first step.

    Raises InvalidRequest for a request that this checkpoint can't do, NumericalFailure if its image can't be encoded.
    """
    request = ticket.request
    traced = ticket.table
    table = table_for(request, denoiser.weights.scheduler_config) if traced is None else traced.result()
    generator = generator_for(request.seed, request.generator_state)
    latents = _first_latents(request, table, denoiser, generator)
    conditioning = denoiser.condition(request, ticket.text)
    return Lane(ticket, table, conditioning, latents.to(denoiser.weights.unet.device), generator)


def _first_latents(
    request: DenoiseRequest, table: SamplerTable, denoiser: Denoiser, generator: torch.Generator
) -> torch.Tensor:
    shape = (denoiser.channels, request.height // LATENT_SCALE, request.width // LATENT_SCALE)
    if request.latents is not None:
        if request.latents.shape != shape:
            raise InvalidRequest(f"latents of shape {request.latents.shape}, expected {shape}", "latents")
        return torch.from_numpy(np.array(request.latents, dtype=np.float32))
    if request.denoising_start > 0:
        raise InvalidRequest("denoising_start goes on from the latents of the stage before", "denoising_start")
    if request.image is None:
        return draw_noise(generator, *shape) * table.init_noise_sigma
    if request.image.shape != (request.height, request.width, 3):
        expected = (request.height, request.width, 3)
        raise InvalidRequest(f"an image of shape {request.image.shape}, expected {expected}", "image")
    clean = encode_image(denoiser.weights.vae, request.image, generator)
    noise = draw_noise(generator, *shape).to(clean.device)
    return table.start_sample * clean + table.start_noise * noise
