"""Makes a lane of a ticket: sampler table, conditions, first latents or those where another lane stopped, image.

Knows a denoiser and one ticket; nothing of batches or of the order in which lanes come.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from deployments.engine.conditioning.controlnet import Controlnet, ControlnetFile, LaneControl, span_of
from deployments.engine.config import EngineSettings
from deployments.engine.denoising.denoiser import Denoiser
from deployments.engine.denoising.latents import draw_noise, enlarged, generator_for, latent_mask
from deployments.engine.errors import InvalidRequest
from deployments.engine.lanes.lane import NO_IMAGE, Lane, LaneConditioning, LaneImage, Ticket
from deployments.engine.lanes.snapshot import LaneOrigin
from deployments.engine.samplers.tables import SamplerTable, sampler_table
from deployments.engine.types import LATENT_SCALE, DenoiseRequest, LatentUpscaler


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


def prepare_lane(
    ticket: Ticket, denoiser: Denoiser, settings: EngineSettings, controlnets: Sequence[Controlnet] = ()
) -> Lane:
    """The ticket's lane on `denoiser`, ready for its first step, or for the one after the state that it brings.

    controlnets: the request's, on the device.

    Raises InvalidRequest for a request that this checkpoint can't do, LoraRefused for one of its LoRAs,
    StateRefused for a state that isn't of this request here, NumericalFailure if its image can't be encoded.
    """
    request = ticket.request
    _check_images(request)
    traced = ticket.table
    table = table_for(request, denoiser.weights.scheduler_config) if traced is None else traced.result()
    generator = generator_for(request.seed, request.generator_state)
    conditioning, *later = denoiser.conditions(request, ticket.text)
    edits = [
        (bisect_left(table.inference_steps, edit.step), of_edit)
        for edit, of_edit in zip(ticket.text.edits, later, strict=True)
    ]
    if conditioning.hidden_states.shape[0] == 2:
        conditioning, edits = _guided_in(_guided_span(request, table), conditioning, edits)
    files = ticket.lora_files
    worn = [(file, lora.weight) for file, lora in zip(files, request.loras, strict=True)]
    made = (denoiser.adapted.adapter(file, weight) for file, weight in worn)
    adapters = [adapter for adapter in made if adapter is not None]
    controls = _controls(request, table, controlnets)
    origin = LaneOrigin(
        checkpoint_hash=denoiser.weights.hash,
        table=_digest(table),
        seed=request.seed,
        guidance_scale=request.guidance_scale,
        shape=(denoiser.channels, request.height // LATENT_SCALE, request.width // LATENT_SCALE),
        reproducibility=f"bucket:{settings.reproducible_rows}" if request.reproducible else "best-effort",
        device=denoiser.device.type,
        dtype=str(denoiser.weights.unet.dtype).removeprefix("torch."),
        guidance_rescale=request.guidance_rescale,
        guidance_start=request.guidance_start,
        guidance_end=request.guidance_end,
        loras=_digest([(file.hash, weight) for file, weight in worn]) if worn else "",
        controls=_digest_of_controls(request, ticket.controlnet_files),
    )
    if request.resume is not None:
        # the same draws as at the beginning, of a generator that isn't the lane's: that one goes on where it was
        image = _draw(request, origin.shape, denoiser, _first_generator(request)).image
        latents = torch.empty(origin.shape, device=denoiser.device)
        lane = Lane(ticket, table, conditioning, latents, generator, origin, edits, image, adapters, controls)
        lane.go_on_from(request.resume)
        return lane
    if request.latents is not None and request.enlarge is None:
        if request.latents.shape != origin.shape:
            raise InvalidRequest(f"latents of shape {request.latents.shape}, expected {origin.shape}", "latents")
        image = _draw(request, origin.shape, denoiser, _first_generator(request)).image
        latents = torch.from_numpy(np.array(request.latents, dtype=np.float32))
    else:
        if request.denoising_start > 0:
            raise InvalidRequest("denoising_start goes on from the latents of the stage before", "denoising_start")
        drawn = _draw(request, origin.shape, denoiser, generator, needs_latents=True)
        image, latents = drawn.image, _first_latents(request, table, drawn)
    latents = latents.to(denoiser.device)
    return Lane(ticket, table, conditioning, latents, generator, origin, edits, image, adapters, controls)


def _controls(
    request: DenoiseRequest, table: SamplerTable, controlnets: Sequence[Controlnet]
) -> tuple[LaneControl, ...]:
    evaluations = len(table.steps)
    total = float(evaluations)
    if request.denoising_end < 1:  # fractions are of the whole schedule then, of what is taken with a strength
        total = evaluations * request.steps / len(set(table.inference_steps))
    return tuple(
        LaneControl(
            controlnet,
            controlnet.look_at(control.image),
            control.scale,
            span_of(control.start, control.end, evaluations, total),
        )
        for controlnet, control in zip(controlnets, request.controls, strict=True)
    )


def _digest_of_controls(request: DenoiseRequest, files: Sequence[ControlnetFile]) -> str:
    """Over what steers a lane, "" for nothing."""
    parts = [
        (file.hash, hashlib.sha256(of.image.tobytes()).hexdigest(), of.scale, of.start, of.end)
        for file, of in zip(files, request.controls, strict=True)
    ]
    return _digest(parts) if parts else ""


def _digest(numbers: object) -> str:
    return hashlib.sha256(repr(numbers).encode()).hexdigest()


def _guided_span(request: DenoiseRequest, table: SamplerTable) -> range:
    """The evaluations of the table that have guidance; rounded to inference steps as diffusers' guiders do."""
    first, stop = (int(fraction * request.steps) for fraction in (request.guidance_start, request.guidance_end))
    return range(bisect_left(table.inference_steps, first), bisect_left(table.inference_steps, stop))


def _guided_in(
    span: range, first: LaneConditioning, edits: Sequence[tuple[int, LaneConditioning]]
) -> tuple[LaneConditioning, list[tuple[int, LaneConditioning]]]:
    """A lane's conditions, the prompt's alone where no evaluation has guidance.

    first: from the beginning on. edits: what takes its place later, by rising evaluation.
    """
    given = [(0, first), *edits]
    borders = sorted({start for start, _ in given} | {start for start in (span.start, span.stop) if start > 0})
    alone: dict[int, LaneConditioning] = {}  # what takes turns is there once
    made = []
    for border in borders:
        of_border = [one for start, one in given if start <= border][-1]
        if border not in span:
            of_border = alone.setdefault(id(of_border), of_border.unguided())
        made.append((border, of_border))
    return made[0][1], made[1:]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What a lane begins with, on the device. clean: the image's latents, None where they aren't needed."""

    image: LaneImage
    noise: torch.Tensor
    clean: torch.Tensor | None


def _first_generator(request: DenoiseRequest) -> torch.Generator:
    """As the image's first stage had it."""
    return generator_for(request.seed, None if request.denoising_start > 0 else request.generator_state)


def _draw(
    request: DenoiseRequest,
    shape: tuple[int, int, int],
    denoiser: Denoiser,
    generator: torch.Generator,
    *,
    needs_latents: bool = False,
) -> _Drawn:
    """The lane's first draws, in the order of diffusers' pipelines: for the image, the noise, the image with a hole.

    needs_latents: for the lane's first latents; else only for what it keeps, and where it keeps nothing, for nothing.
    """
    mask, picture = request.mask, request.image
    device = denoiser.device
    if not (needs_latents or mask is not None or denoiser.takes_hints):
        return _Drawn(NO_IMAGE, torch.empty(0), None)
    repaints = mask is not None and not denoiser.takes_hints
    # diffusers' inpainting pipelines don't encode an image of which nothing will be seen
    seen = mask is None or repaints or request.strength not in (None, 1.0)
    clean = denoiser.vae.encode(picture, generator) if picture is not None and seen else None
    if request.enlarge is not None:
        clean = _enlarged(request, shape, request.enlarge).to(device)
    noise = draw_noise(generator, *shape).to(device)
    if denoiser.takes_hints:
        return _Drawn(LaneImage(hint=_hint(request, denoiser, generator)), noise, clean)
    if mask is None or clean is None:
        return _Drawn(NO_IMAGE, noise, clean)
    draw_noise(generator, *shape)  # for the image with a hole: drawn there too, though only hints need it
    return _Drawn(LaneImage(latent_mask(mask).to(device), clean, noise), noise, clean)


def _enlarged(request: DenoiseRequest, shape: tuple[int, int, int], upscaler: LatentUpscaler) -> torch.Tensor:
    """A finished picture's latents at the size of this one."""
    if request.latents is None or request.latents.ndim != 3 or len(request.latents) != shape[0]:
        raise InvalidRequest(f"there are no latents of {shape[0]} channels to enlarge", "latents")
    if request.strength is None:
        raise InvalidRequest("enlarged latents need a strength", "strength")
    return enlarged(torch.from_numpy(np.array(request.latents, dtype=np.float32)), *shape[1:], upscaler)


def _hint(request: DenoiseRequest, denoiser: Denoiser, generator: torch.Generator) -> torch.Tensor:
    """A UNet's further channels; without a mask everything is to be painted."""
    size = request.height, request.width
    mask = np.full(size, 255, np.uint8) if request.mask is None else request.mask
    picture = np.zeros((*size, 3), np.uint8) if request.image is None else request.image
    latents = denoiser.vae.encode(picture, generator, without=mask)
    return torch.cat([latent_mask(mask).to(latents.device), latents])


def _first_latents(request: DenoiseRequest, table: SamplerTable, drawn: _Drawn) -> torch.Tensor:
    wholly_new = request.mask is not None and request.strength in (None, 1.0)
    if drawn.clean is None or wholly_new:
        return drawn.noise * table.init_noise_sigma
    return table.start_sample * drawn.clean + table.start_noise * drawn.noise


def _check_images(request: DenoiseRequest) -> None:
    size = request.height, request.width
    if request.mask is not None and request.image is None:
        raise InvalidRequest("a mask needs the image that it is of", "mask")
    controls = [("controlnets", control.image, (*size, 3)) for control in request.controls]
    for field, array, expected in (("image", request.image, (*size, 3)), ("mask", request.mask, size), *controls):
        if array is not None and (array.shape != expected or array.dtype != np.uint8):
            raise InvalidRequest(f"{field} is {array.dtype} {array.shape}, expected uint8 {expected}", field)
