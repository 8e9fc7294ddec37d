"""Turns finished lanes into results: decoded images, or latents for the next stage."""

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from deployments.engine.denoising.denoiser import Denoiser
from deployments.engine.device import as_darkroom_error
from deployments.engine.errors import DarkroomError, NumericalFailure
from deployments.engine.lanes.lane import Lane
from deployments.engine.types import DenoiseResult, Pixels, StageTimings


def hand_over(lane: Lane) -> DenoiseResult:
    """The result of a lane whose latents go to the next stage."""
    return _result(lane, image=None, decode_s=0.0)


def decoded_with(lane: Lane, lanes: Sequence[Lane]) -> list[Lane]:
    """The lanes whose images one decode takes, this one first: of one shape, checkpoint and VAE.

    A reproducible one is alone.
    """
    if lane.request.reproducible:
        return [lane]
    others = [other for other in lanes if other is not lane and not other.request.reproducible]
    return [lane, *(other for other in others if (other.key, other.vae) == (lane.key, lane.vae))]


def decode(lanes: Sequence[Lane], denoiser: Denoiser) -> Iterator[tuple[Lane, DenoiseResult | DarkroomError]]:
    """Each lane of one decode with its result or its error; if they fail together, one image after the other."""
    started = time.perf_counter()
    failure: DarkroomError | None = None
    decoded: list[np.ndarray | NumericalFailure] = []
    try:
        latents = torch.stack([lane.latents for lane in lanes])
        requested = lanes[0].vae
        vae = denoiser.vae if requested is None else requested.vae
        decoded = vae.decode(latents, tiling=lanes[0].key.tiling)
    except torch.AcceleratorError:
        raise
    except Exception as error:
        failure = as_darkroom_error(error, f"{len(lanes)} finished images could not be decoded")
    if failure is not None:  # outside of the except block, whose traceback holds the failed batch's memory
        torch.cuda.empty_cache()
        if len(lanes) == 1:
            yield lanes[0], failure
            return
        for lane in lanes:
            yield from decode([lane], denoiser)
        return
    share = (time.perf_counter() - started) / len(lanes)
    for lane, outcome in zip(lanes, decoded, strict=True):
        if isinstance(outcome, DarkroomError):
            yield lane, outcome
        else:
            yield lane, _result(lane, image=outcome, decode_s=share)


def _result(lane: Lane, image: Pixels | None, decode_s: float) -> DenoiseResult:
    request, fingerprint = lane.request, lane.fingerprint
    hand_over = image is None
    return DenoiseResult(
        lane_id=request.lane_id,
        seed=request.seed,
        variation_seed=request.variation_seed,
        checkpoint=request.checkpoint,
        checkpoint_hash=fingerprint.checkpoint_hash,
        reproducibility=fingerprint.reproducibility,
        timings=StageTimings(
            queued_s=lane.admitted - lane.ticket.submitted,
            denoise_s=time.monotonic() - lane.admitted - decode_s,
            decode_s=decode_s,
            device_s=lane.device_s + decode_s,
            encode_s=lane.ticket.text.encode_s,
        ),
        device=fingerprint.device,
        dtype=fingerprint.dtype,
        image=image,
        latents=lane.latents.cpu().numpy() if hand_over else None,
        generator_state=lane.generator.get_state().numpy() if hand_over else None,
        lora_hashes={name: file.hash for name, file in lane.ticket.files.loras.items()},
        inversion_hashes=lane.ticket.text.inversion_hashes,
        conditioning_hashes={kind: dict(hashes) for kind, hashes in lane.file_hashes.items()},
        vae_hash=fingerprint.vae or None,
    )
