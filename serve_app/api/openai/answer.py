"""OpenAI's answer to a request for images."""

import base64
from collections.abc import Callable
from typing import Any

from serve_app.api.openai.request import OpenAIImageRequest
from serve_app.api.openai.stream import NO_USAGE
from serve_app.api.outcome import shown_images
from serve_app.api.service import Service
from serve_app.image_store.store import ImageName
from serve_app.jobs.job import Job

# of OpenAI's qualities those that an answer may name
_ANSWERED_QUALITIES = ("low", "medium", "high", "xhigh", "max")

# the address of an image of that name
Address = Callable[[str], str]


async def image_entry(
    service: Service, response_format: str | None, name: ImageName, seed: int | None, address: Address
) -> dict[str, Any]:
    """An image: in one of its two forms, with its prompt, which is never revised, and its seed, a field of ours."""
    file = url = None
    if response_format == "url":
        url = address(str(name))
    else:
        file = base64.b64encode(await service.images.read(name)).decode()
    return {"b64_json": file, "url": url, "revised_prompt": None, "seed": seed}


async def image_answer(service: Service, job: Job, body: OpenAIImageRequest, address: Address) -> dict[str, Any]:
    """The answer with the images of a job that has some. Raises UnknownImage, StoreUnavailable."""
    images = shown_images(job)
    data = [await image_entry(service, body.response_format, one.name, one.seed, address) for one in images]
    warnings = {"warnings": body.warnings} if body.warnings else {}
    return {
        "id": job.id,
        "created": int(job.created_at.timestamp()),
        "background": "opaque",
        "data": data,
        "output_format": job.request["output_format"],
        "quality": body.quality if body.quality in _ANSWERED_QUALITIES else None,
        "safety_identifier": body.identifier,
        "size": images[0].size,
        "usage": NO_USAGE,
        **warnings,
    }
