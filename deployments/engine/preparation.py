"""Makes a lane of a ticket: sampler table, conditions, first latents or those where another lane stopped.

Knows a denoiser and one ticket; nothing of batches or of the order in which lanes come.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from deployments.engine.denoiser import LATENT_SCALE, Denoiser
from deployments.engine.errors import InvalidRequest
from deployments.engine.lane import Lane, LaneConditioning, Ticket
from deployments.engine.lane_state import LaneOrigin
from deployments.engine.latents import draw_noise, encode_image, generator_for
from deployments.engine.request import DenoiseRequest
from deployments.engine.samplers import SamplerTable, inference_steps, sampler_table
from deployments.engine.settings import EngineSettings


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


def inference_steps_for(request: DenoiseRequest, scheduler_config: Mapping[str, Any]) -> tuple[int, ...]:
    """Of each UNet evaluation of the request, the inference step that it belongs to. Raises InvalidRequest."""
    return inference_steps(
        scheduler_config,
        request.sampler,
        request.steps,
        denoising_start=request.denoising_start,
        denoising_end=request.denoising_end,
        strength=request.strength,
    )


def prepare_lane(ticket: Ticket, denoiser: Denoiser, settings: EngineSettings) -> Lane:
    """The ticket's lane on `denoiser`, ready for its first step, or for the one after the state that it brings.

    Raises InvalidRequest for a request that this checkpoint can't do, StateRefused for a state that isn't of this
    request here, NumericalFailure if its image can't be encoded.
    """
    request = ticket.request
    traced = ticket.table
    table = table_for(request, denoiser.weights.scheduler_config) if traced is None else traced.result()
    generator = generator_for(request.seed, request.generator_state)
    conditioning, *later = denoiser.conditions(request, ticket.text)
    edits: list[tuple[int, LaneConditioning]] = []
    if later:
        taken = inference_steps_for(request, denoiser.weights.scheduler_config)
        edits = [
            (bisect_left(taken, edit.step), of_edit) for edit, of_edit in zip(ticket.text.edits, later, strict=True)
        ]
    unet = denoiser.weights.unet
    origin = LaneOrigin(
        checkpoint_hash=denoiser.weights.hash,
        table=hashlib.sha256(repr(table).encode()).hexdigest(),
        seed=request.seed,
        guidance_scale=request.guidance_scale,
        shape=(denoiser.channels, request.height // LATENT_SCALE, request.width // LATENT_SCALE),
        reproducibility=f"bucket:{settings.reproducible_rows}" if request.reproducible else "best-effort",
        device=unet.device.type,
        dtype=str(unet.dtype).removeprefix("torch."),
    )
    if request.resume is not None:
        lane = Lane(
            ticket, table, conditioning, torch.empty(origin.shape, device=unet.device), generator, origin, edits
        )
        lane.go_on_from(request.resume)
        return lane
    latents = _first_latents(request, origin.shape, table, denoiser, generator)
    return Lane(ticket, table, conditioning, latents.to(unet.device), generator, origin, edits)


def _first_latents(
    request: DenoiseRequest,
    shape: tuple[int, int, int],
    table: SamplerTable,
    denoiser: Denoiser,
    generator: torch.Generator,
) -> torch.Tensor:
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
