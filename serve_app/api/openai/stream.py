"""Images as OpenAI's server-sent events: partial ones while they develop, then each finished one.

    image_generation.partial_image   {type, b64_json, partial_image_index, created_at, size, quality, background,
                                      output_format}
    image_generation.completed       the same without the index, and usage; one for each image

Of an edit they are called image_edit.*.
A partial image is a true preview of the first image's latents, at the asked size and in the asked format. They are
sent as the work passes even fractions of its way; a job that is faster than its reader gets fewer. An error is one
event with a top-level `error`, which the SDK raises.
"""

import asyncio
import base64
import io
import time
from collections.abc import AsyncGenerator
from typing import Any

from PIL import Image

from deployments.engine.errors import DarkroomError
from deployments.engine.types import Pixels
from serve_app.api.errors import openai_error_body
from serve_app.api.http_status import status_of
from serve_app.api.openai.request import OpenAIImageRequest
from serve_app.api.outcome import Left, error_of, files_of, leave, shown_images
from serve_app.api.service import ELSEWHERE_POLL_S, Service
from serve_app.api.sse import KEEP_ALIVE, event
from serve_app.jobs.job import Job, JobProgress

# nothing is billed here, and nothing is counted in tokens
NO_USAGE: dict[str, Any] = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "total_tokens": 0,
}


async def image_stream(service: Service, job: Job, body: OpenAIImageRequest, left: Left) -> AsyncGenerator[bytes, None]:
    """The events of a job from now to its end; `left` is done with it if the client goes first."""
    try:
        with service.hub.watch(job.id) as watch:
            job = await service.store.get(job.id)  # once more: it may have ended before the watch began
            sent = 0
            while not job.state.terminal:
                here = service.runner.runs(job.id)
                news = await watch.next(service.settings.limits.event_heartbeat_s if here else ELSEWHERE_POLL_S)
                if news is None or (news.ended is None and not here):
                    job = await service.store.get(job.id)
                    yield KEEP_ALIVE
                elif news.ended is not None:
                    job = news.ended
                elif 0 in news.previews and _due(news.progress, sent, body.previews):
                    file = await asyncio.to_thread(_enlarged, news.previews[0], job)
                    yield _event("partial_image", file, job, body, partial_image_index=sent)
                    sent += 1
        error = error_of(job)
        if error is not None:
            yield _failed(error)
            return
        images = shown_images(job)
        for image, file in zip(images, await files_of(service, images), strict=True):
            about = {"size": image.size, "usage": NO_USAGE, "safety_identifier": body.identifier}
            yield _event("completed", file, job, body, **about)
    except DarkroomError as error:  # the answer has begun: all that is left is to say it here
        yield _failed(error)
    finally:
        if not job.state.terminal:
            leave(service, job.id, left)


def _due(progress: JobProgress | None, sent: int, wanted: int) -> bool:
    """The next of `wanted` partial images is due: they divide the way into even parts."""
    return progress is not None and sent < wanted and progress.step * (wanted + 1) >= progress.steps * (sent + 1)


def _enlarged(preview: Pixels, job: Job) -> bytes:
    """A preview as the file that the event promises: the image's size and format."""
    size = job.request["width"], job.request["height"]
    file = io.BytesIO()
    Image.fromarray(preview).resize(size, Image.Resampling.BICUBIC).save(file, job.request["output_format"].upper())
    return file.getvalue()


def _event(kind: str, file: bytes, job: Job, body: OpenAIImageRequest, **more: Any) -> bytes:
    data = {
        "type": f"{body.event}.{kind}",
        "b64_json": base64.b64encode(file).decode(),
        "created_at": int(time.time()),
        "size": f"{job.request['width']}x{job.request['height']}",
        "quality": body.quality or "auto",
        "background": "opaque",
        "output_format": job.request["output_format"],
        **more,
    }
    return event(data["type"], data)


def _failed(error: DarkroomError) -> bytes:
    return event("error", openai_error_body(error, status_of(error)))
