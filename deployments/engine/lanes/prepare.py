"""Makes a lane of a ticket: sampler table, conditions, first latents or those where another lane stopped, image."""

import hashlib
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from deployments.engine.conditioning.protocol import DeviceWeights, Timeline
from deployments.engine.conditioning.registry import Conditioners
from deployments.engine.config import EngineSettings
from deployments.engine.denoising.denoiser import Denoiser
from deployments.engine.lanes.first_latents import begin, check_images, generator_for
from deployments.engine.lanes.lane import Lane, LaneConditioning, Ticket
from deployments.engine.lanes.snapshot import SnapshotFingerprint
from deployments.engine.samplers.tables import SamplerTable, sampler_table
from deployments.engine.types import LATENT_SCALE, DenoiseRequest


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
    ticket: Ticket,
    denoiser: Denoiser,
    settings: EngineSettings,
    conditioners: Conditioners,
    in_use: Collection[DeviceWeights] = (),
) -> Lane:
    """The ticket's lane on `denoiser`, ready for its first step, or for the one after the state that it brings.

    Args:
        in_use: weights of conditioners that lanes use, which have to stay on the device.

    Raises:
        InvalidRequest: this checkpoint can't do what is asked, or a file that the request names can't be used with it.
        DoesNotFit: the request's conditionings are too large together.
        StateRefused: the state that it brings isn't of this request here.
        NumericalFailure: its image can't be encoded.
    """
    request = ticket.request
    check_images(request)
    traced = ticket.table
    table = table_for(request, denoiser.weights.scheduler_config) if traced is None else traced.result()
    generator = generator_for(request.seed, request.generator_state)
    text, *later = denoiser.conditions(request, ticket.text)
    edits = [
        (bisect_left(table.inference_steps, edit.step), of_edit)
        for edit, of_edit in zip(ticket.text.edits, later, strict=True)
    ]
    if text.hidden_states.shape[0] == 2:
        text, edits = _guided_in(_guided_span(request, table), text, edits)
    files = ticket.files
    loras = [(file, lora.weight) for file, lora in zip(files.loras, request.loras, strict=True)]
    of_unet = (denoiser.adapted.adapter(file, weight) for file, weight in loras)
    adapters = [adapter for adapter in of_unet if adapter is not None]
    timeline = _timeline(request, table)
    conditions = conditioners.prepare(request, files.conditioning, denoiser.weights, timeline, in_use)
    dtype = str(denoiser.weights.unet.dtype).removeprefix("torch.")
    fingerprint = SnapshotFingerprint(
        **request.parameters(),
        checkpoint_hash=denoiser.weights.hash,
        table=_digest(table),
        shape=(denoiser.channels, request.height // LATENT_SCALE, request.width // LATENT_SCALE),
        reproducibility=f"bucket:{settings.reproducible_rows}" if request.reproducible else "best-effort",
        device=denoiser.device.type,
        dtype=dtype if settings.quantize == "none" else f"{dtype}+{settings.quantize}",
        loras=_digest([(file.hash, weight) for file, weight in loras]) if loras else "",
        conditions=_digest([condition.origin for condition in conditions]) if conditions else "",
    )
    image, latents = begin(request, table, fingerprint.shape, denoiser, generator)
    lane = Lane(
        ticket, table, text, latents.to(denoiser.device), generator, fingerprint, edits, image, adapters, conditions
    )
    if request.resume is not None:
        lane.go_on_from(request.resume)
    return lane


def _timeline(request: DenoiseRequest, table: SamplerTable) -> Timeline:
    evaluations = len(table.steps)
    total = float(evaluations)
    if request.denoising_end < 1:  # fractions are of the whole schedule then, of what is taken with a strength
        total = evaluations * request.steps / len(set(table.inference_steps))
    return Timeline(evaluations, total)


def _digest(numbers: object) -> str:
    return hashlib.sha256(repr(numbers).encode()).hexdigest()


def _guided_span(request: DenoiseRequest, table: SamplerTable) -> range:
    """The evaluations of the table that have guidance; rounded to inference steps as diffusers' guiders do."""
    first, stop = (int(fraction * request.steps) for fraction in (request.guidance_start, request.guidance_end))
    return range(bisect_left(table.inference_steps, first), bisect_left(table.inference_steps, stop))


def _guided_in(
    span: range, first: LaneConditioning, edits: Sequence[tuple[int, LaneConditioning]]
) -> tuple[LaneConditioning, list[tuple[int, LaneConditioning]]]:
    """A lane's texts, the prompt's alone where no evaluation has guidance.

    Args:
        span: the evaluations that have guidance.
        first: the text from the beginning on.
        edits: what takes its place later, by rising evaluation.

    Returns:
        The first text and the edits, as they came in.
    """
    changes = [(0, first), *edits]
    borders = sorted({start for start, _ in changes} | {start for start in (span.start, span.stop) if start > 0})
    unguided: dict[int, LaneConditioning] = {}  # what takes turns is there once
    texts = []
    for border in borders:
        text = [text for start, text in changes if start <= border][-1]
        if border not in span:
            text = unguided.setdefault(id(text), text.unguided())
        texts.append((border, text))
    return texts[0][1], texts[1:]
