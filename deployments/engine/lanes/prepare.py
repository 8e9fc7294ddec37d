"""Makes a lane of a ticket: sampler table, conditions, first latents or a snapshot's, image."""

import hashlib
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from deployments.engine.adapters.lora import Adapter
from deployments.engine.conditioning.protocol import Timeline
from deployments.engine.conditioning.registry import Conditioners
from deployments.engine.config import EngineSettings
from deployments.engine.denoising.denoiser import Denoiser
from deployments.engine.denoising.regions import origin_of
from deployments.engine.errors import CheckpointChanged
from deployments.engine.lanes.first_latents import begin, check_images, generator_for
from deployments.engine.lanes.lane import Lane, LaneConditioning, LaneFiles, Ticket
from deployments.engine.lanes.snapshot import SnapshotFingerprint
from deployments.engine.memory.weight_pool import DeviceWeights
from deployments.engine.prompts.syntax import Lora
from deployments.engine.samplers.tables import SamplerTable, sampler_table
from deployments.engine.types import LATENT_SCALE, DenoiseRequest
from deployments.engine.vae.requested import RequestedVaes


def table_for(request: DenoiseRequest, scheduler_config: Mapping[str, Any]) -> SamplerTable:
    """The sampler table of the part of the schedule that the request runs. Raises InvalidRequest if it has no step."""
    return sampler_table(
        scheduler_config,
        request.sampler,
        request.steps,
        denoising_start=request.denoising_start,
        denoising_end=request.denoising_end,
        strength=request.strength,
        options=request.sampler_options,
    )


def prepare_lane(
    ticket: Ticket,
    denoiser: Denoiser,
    settings: EngineSettings,
    conditioners: Conditioners,
    vaes: RequestedVaes,
    in_use: Collection[DeviceWeights] = (),
) -> Lane:
    """The ticket's lane on `denoiser`, ready for its first step, or for the next one after its snapshot.

    Args:
        ticket: whose table and files are ready.
        denoiser: the request's checkpoint.
        settings: of the engine.
        conditioners: prepare the request's conditionings.
        vaes: have the request's VAE.
        in_use: weights that other lanes use and that must stay on the device.

    Raises:
        CheckpointChanged: the checkpoint isn't the one that the request is pinned to.
        InvalidRequest: the checkpoint can't draw the request, or a file that it names can't be used with it.
        DoesNotFit: the request's conditionings together, or its VAE, are too large for the device.
        StateRefused: the snapshot isn't one of this request on this device.
        NumericalFailure: the encoded image isn't finite.
    """
    request = ticket.request
    if request.checkpoint_hash not in (None, denoiser.weights.hash):
        raise CheckpointChanged(
            f"the weights of {request.checkpoint} have the hash {denoiser.weights.hash}, the request is for "
            f"{request.checkpoint_hash}",
            "model",
        )
    check_images(request)
    traced = ticket.table
    table = table_for(request, denoiser.weights.scheduler_config) if traced is None else traced.result()
    generator = generator_for(request.seed, request.generator_state)
    text, *later = denoiser.conditions(request, ticket.text)
    edits = [
        (bisect_left(table.inference_steps, edit.step), of_edit)
        for edit, of_edit in zip(ticket.text.edits, later, strict=True)
    ]
    if text.guided:
        text, edits = _guided_in(_guided_span(request, table), text, edits)
    files = ticket.files
    adapters = _adapters(request.loras, files, denoiser)
    of_regions: list[list[Adapter]] = []
    if any(region.loras is not None for region in request.regions):
        own = (request.loras if region.loras is None else region.loras for region in request.regions)
        of_regions = [_adapters(loras, files, denoiser) for loras in own]
    timeline = _timeline(request, table)
    conditions = conditioners.prepare(request, ticket.text, files.conditioning, denoiser.weights, timeline, in_use)
    steered_by = [*(condition.origin for condition in conditions), *origin_of(request)]
    vae = None if files.vae is None else vaes.get(request, files.vae, denoiser.weights, in_use)
    dtype = str(denoiser.weights.unet.dtype).removeprefix("torch.")
    fingerprint = SnapshotFingerprint(
        **request.parameters(),
        checkpoint_hash=denoiser.weights.hash,
        table=_digest(table),
        shape=(denoiser.channels, request.height // LATENT_SCALE, request.width // LATENT_SCALE),
        reproducibility=f"bucket:{settings.reproducible_rows}" if request.reproducible else "best-effort",
        device=denoiser.device.type,
        dtype=dtype if settings.quantize == "none" else f"{dtype}+{settings.quantize}",
        loras=_loras_of(request, files),
        conditions=_digest(steered_by) if steered_by else "",
        vae="" if files.vae is None else files.vae.hash,
    )
    encoder = denoiser.vae if vae is None else vae.vae
    image, latents = begin(request, table, fingerprint.shape, denoiser, encoder, generator)
    lane = Lane(
        ticket,
        table,
        text,
        latents.to(denoiser.device),
        generator,
        fingerprint,
        edits,
        image,
        adapters,
        conditions,
        vae,
        of_regions,
    )
    if request.resume is not None:
        lane.go_on_from(request.resume)
    return lane


def _adapters(loras: Sequence[Lora], files: LaneFiles, denoiser: Denoiser) -> list[Adapter]:
    """Those LoRAs that change the UNet, on its device. Raises LoraRefused."""
    of_unet = (denoiser.adapted.adapter(files.loras[lora.name], lora.weight) for lora in loras)
    return [adapter for adapter in of_unet if adapter is not None]


def _loras_of(request: DenoiseRequest, files: LaneFiles) -> str:
    """SnapshotFingerprint.loras of a request."""
    if not request.lora_names:
        return ""
    loras: list[object] = [(files.loras[lora.name].hash, lora.weight) for lora in request.loras]
    for number, region in enumerate(request.regions):
        if region.loras is not None:
            loras.append((number, *((files.loras[lora.name].hash, lora.weight) for lora in region.loras)))
    return _digest(loras)


def _timeline(request: DenoiseRequest, table: SamplerTable) -> Timeline:
    evaluations = len(table.steps)
    total = float(evaluations)
    if request.denoising_end < 1:  # fractions are of the whole schedule then, of what is taken with a strength
        total = evaluations * request.steps / len(set(table.inference_steps))
    return Timeline(evaluations, total)


def _digest(numbers: object) -> str:
    return hashlib.sha256(repr(numbers).encode()).hexdigest()


def _guided_span(request: DenoiseRequest, table: SamplerTable) -> range:
    """The evaluations of the table that have guidance; rounded to inference steps as in diffusers' guiders."""
    first, stop = (int(fraction * request.steps) for fraction in (request.guidance_start, request.guidance_end))
    return range(bisect_left(table.inference_steps, first), bisect_left(table.inference_steps, stop))


def _guided_in(
    span: range, first: LaneConditioning, edits: Sequence[tuple[int, LaneConditioning]]
) -> tuple[LaneConditioning, list[tuple[int, LaneConditioning]]]:
    """A lane's texts with the negative prompt's rows within `span` only.

    Args:
        span: the evaluations that have guidance.
        first: the text from the beginning on.
        edits: (evaluation, text) pairs by rising evaluation: the text from that evaluation on.

    Returns:
        The first text and the edits.
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
