"""A finished job as AUTOMATIC1111's {images, parameters, info}. `info` is a JSON string, images are raw base64."""

import base64
import json
from collections.abc import Sequence
from typing import Any

from deployments.engine.samplers.registry import NAMES, WEBUI_SAMPLERS, split
from serve_app.api.a1111.progress import timestamp
from serve_app.api.outcome import ShownImage
from serve_app.images.infotext import infotext_of
from serve_app.jobs.job import Job


def result_of(
    job: Job, asked: Any, images: list[ShownImage], files: list[bytes], warnings: Sequence[str] = ()
) -> dict[str, Any]:
    """The answer with the images.

    Args:
        job: at its end.
        asked: the request's body, which `parameters` repeats.
        images: that may be seen.
        files: of the images; empty if the client wants none.
        warnings: what was drawn otherwise than the request says; a key of `info` that A1111 hasn't.
    """
    return {
        "images": [base64.b64encode(file).decode() for file in files],
        "parameters": asked,
        "info": json.dumps({**_info(job, images), "warnings": list(warnings)}, ensure_ascii=False),
    }


def _info(job: Job, images: list[ShownImage]) -> dict[str, Any]:
    request, count = job.request, len(images)
    model_hash = images[0].manifest.model.hash[:10] if images else ""
    vae = images[0].manifest.vae if images else None
    refiner: dict[str, Any] = {}
    if request["refiner"] is not None:
        refiner = {"Refiner": request["refiner"], "Refiner switch at": request["switch_at"]}
    return {
        "prompt": request["prompt"],
        "all_prompts": [image.manifest.prompt for image in images],
        "negative_prompt": request["negative_prompt"],
        "all_negative_prompts": [image.manifest.negative_prompt for image in images],
        "seed": images[0].seed if images else request["seed"],
        "all_seeds": [image.seed for image in images],
        "subseed": request["variation_seed"],
        "all_subseeds": [image.manifest.variation_seed for image in images],
        "subseed_strength": request["variation_strength"],
        "width": request["width"],
        "height": request["height"],
        "sampler_name": _label_of(request["sampler"]),
        "cfg_scale": request["guidance_scale"],
        "steps": request["steps"],
        "batch_size": count,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": request["model"],
        "sd_model_hash": model_hash,
        "sd_vae_name": None if vae is None else vae.name,
        "sd_vae_hash": None if vae is None else vae.hash[:10],
        "seed_resize_from_w": request["noise_width"] or -1,
        "seed_resize_from_h": request["noise_height"] or -1,
        "denoising_strength": (request.get("image") or request.get("hires") or {}).get("strength"),
        "extra_generation_params": refiner,
        "index_of_first_image": 0,
        "infotexts": [infotext_of(image.manifest) for image in images],
        "styles": [],
        "job_timestamp": timestamp(job),
        "clip_skip": request["clip_skip"] + 1,
        "is_using_inpainting_conditioning": False,
        "version": images[0].manifest.versions["darkroom"] if images else "",
    }


def _label_of(sampler: str) -> str:
    """A1111's label of a canonical sampler."""
    known = WEBUI_SAMPLERS.get(split(sampler)[0])
    return NAMES[sampler][0] if known is None else known.label
