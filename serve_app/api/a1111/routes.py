"""AUTOMATIC1111's web API, as webuiapi, Open WebUI and SillyTavern call it. A translator, nothing else.

    POST /sdapi/v1/txt2img, /img2img, /interrupt, /skip       POST /sdapi/v1/png-info, /extra-single-image
    POST /sdapi/v1/extra-batch-images                         GET /sdapi/v1/progress
    GET, POST /sdapi/v1/options                               POST /internal/progress, GET /internal/pending-tasks

Every answer is JSON, `null` and `{}` included. The lists are in lists.py, the requests in request.py and extras.py,
what they draw in drawing.py, what belongs to one caller in sessions.py.
"""

import asyncio
import html
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel

from deployments.engine.errors import InvalidRequest, UnknownCheckpoint
from serve_app.api.a1111.default_options import DEFAULT_OPTIONS
from serve_app.api.a1111.drawing import A1111Drawing, known_folders
from serve_app.api.a1111.extras import A1111ExtraImage, A1111ExtraImages
from serve_app.api.a1111.options import A1111Options, Switch, kept_options
from serve_app.api.a1111.progress import overall, task_state
from serve_app.api.a1111.replay import replay_of
from serve_app.api.a1111.request import A1111ImageToImage, A1111TextToImage
from serve_app.api.a1111.sd_upscale import SCRIPT_NAME
from serve_app.api.bodies import PIXEL, JsonBody
from serve_app.api.shared import CurrentService, CurrentSessions
from serve_app.auth.route_scopes import Changer, DrawerFromImage, Reader, ReaderOfImage
from serve_app.images.decode import decoded
from serve_app.images.infotext import parse_infotext, texts_of


class A1111PngInfo(BaseModel):
    """The body of POST /sdapi/v1/png-info; the image is base64 or a data URL."""

    image: str


class A1111Task(BaseModel):
    """The body of POST /internal/progress; `id_live_preview` is the last preview that the client has."""

    id_task: str
    id_live_preview: int = -1
    live_preview: Switch = True


_DRAWN = {
    "prompt": "a large red circle on a blue background",
    "steps": 20,
    "seed": 4,
    "sampler_name": "Euler a",
    "width": 256,
    "height": 256,
}
_DRAWN_OVER = {
    "prompt": "a large red circle on a blue background",
    "init_images": [PIXEL],
    "denoising_strength": 0.7,
    "seed": 4,
    "width": 256,
    "height": 256,
}
_TXT2IMG = JsonBody(A1111TextToImage, _DRAWN)
_IMG2IMG = JsonBody(A1111ImageToImage, _DRAWN_OVER)
_OPTIONS = JsonBody(A1111Options, {"sd_model_checkpoint": "demo-sd15"})
_PNG_INFO = JsonBody(A1111PngInfo, {"image": PIXEL})
_EXTRA_IMAGE = JsonBody(A1111ExtraImage, {"image": PIXEL, "upscaler_1": "Lanczos", "upscaling_resize": 2})
_EXTRA_IMAGES = JsonBody(A1111ExtraImages, {"imageList": [{"data": PIXEL, "name": "a"}], "upscaling_resize": 2})
_TASK = JsonBody(A1111Task, {"id_task": "task(mine)", "live_preview": False})

routes = APIRouter(tags=["AUTOMATIC1111"])


async def _drawing(
    caller: DrawerFromImage, service: CurrentService, sessions: CurrentSessions, request: Request
) -> A1111Drawing:
    return A1111Drawing(service, sessions.of(caller.name), caller, request)


Drawing = Annotated[A1111Drawing, Depends(_drawing)]


@routes.post("/sdapi/v1/txt2img")
async def txt2img(
    caller: DrawerFromImage,
    body: Annotated[A1111TextToImage, Depends(_TXT2IMG)],
    drawing: Drawing,
    request: Request,
) -> Response:
    """Images from a prompt, when they are done. Interrupted, it answers without images."""
    return await drawing.drawn(body, request.state.json)


@routes.post("/sdapi/v1/img2img")
async def img2img(
    caller: DrawerFromImage,
    body: Annotated[A1111ImageToImage, Depends(_IMG2IMG)],
    drawing: Drawing,
    request: Request,
) -> Response:
    """Images from an image and a prompt; with a mask only what is white in it is painted."""
    repeated = body.repeated(request.state.json)
    if (body.script_name or "").strip().lower() == SCRIPT_NAME:
        return await drawing.drawn_in_tiles(body, repeated)
    if 1 < len(body.init_images) <= (body.batch_size or 1):
        return await drawing.drawn_over_each(body, repeated)
    return await drawing.drawn(body, repeated)


@routes.get("/sdapi/v1/progress")
async def progress(
    caller: Reader,
    service: CurrentService,
    sessions: CurrentSessions,
    skip_current_image: Annotated[bool, Query(examples=[True])] = False,
) -> dict[str, Any]:
    """How far the caller's oldest unfinished request is."""
    return await overall(service, sessions.of(caller.name), with_image=not skip_current_image)


@routes.post("/sdapi/v1/interrupt")
async def interrupt(caller: Changer, service: CurrentService, sessions: CurrentSessions) -> dict[str, Any]:
    """End all requests of this caller."""
    session = sessions.of(caller.name)
    session.interrupted = bool(session.jobs)
    await asyncio.gather(*(service.cancel(job.id) for job in session.jobs.values()))
    return {}


@routes.post("/sdapi/v1/skip")
async def skip(caller: Changer, service: CurrentService, sessions: CurrentSessions) -> None:
    """End the caller's oldest unfinished request."""
    session = sessions.of(caller.name)
    oldest = next(iter(session.jobs.values()), None)
    if oldest is not None:
        session.skipped = True
        await service.cancel(oldest.id)


@routes.get("/sdapi/v1/options")
async def options(caller: Reader, service: CurrentService, sessions: CurrentSessions) -> dict[str, Any]:
    """The caller's choices, among what can't be chosen."""
    session = sessions.of(caller.name)
    settings = service.settings_for(caller)
    own_format = service.settings.images.default_format
    return {
        **DEFAULT_OPTIONS,
        "samples_format": "jpg" if own_format == "jpeg" else own_format,
        **session.options,
        "sd_model_checkpoint": session.chosen_model(settings) or settings.default_model,
    }


@routes.post("/sdapi/v1/options")
async def set_options(
    caller: Changer,
    body: Annotated[A1111Options, Depends(_OPTIONS)],
    service: CurrentService,
    sessions: CurrentSessions,
    request: Request,
) -> None:
    """Choose the caller's model and options; keys that A1111 doesn't know are ignored."""
    settings = service.settings_for(caller)
    model = body.model(settings)
    if model is not None and model not in settings.generating():
        raise UnknownCheckpoint(f"sd_model_checkpoint is {model}, which only refines", "sd_model_checkpoint")
    session = sessions.of(caller.name)
    session.model = model or session.model
    session.options |= kept_options(request.state.json, await asyncio.to_thread(service.vaes.names))


@routes.post("/sdapi/v1/png-info")
async def png_info(
    caller: ReaderOfImage, body: Annotated[A1111PngInfo, Depends(_PNG_INFO)], service: CurrentService
) -> dict[str, Any]:
    """The parameters in an image file, and the native request that they stand for here."""
    texts = await asyncio.to_thread(texts_of, decoded("image", body.image))
    if texts is None:
        raise InvalidRequest("image isn't a PNG, JPEG or WebP file", "image")
    infotext, items = texts
    told: dict[str, Any] = {"info": infotext, "items": items, "parameters": {}, "request": None, "warnings": ()}
    if infotext:
        told["parameters"] = parse_infotext(infotext)
        known = await known_folders(service)
        request, told["warnings"] = await asyncio.to_thread(replay_of, infotext, service.settings_for(caller), known)
        told["request"] = None if request is None else request.model_dump(mode="json", exclude_defaults=True)
    return told


@routes.post("/sdapi/v1/extra-single-image")
async def extra_single_image(
    caller: DrawerFromImage, body: Annotated[A1111ExtraImage, Depends(_EXTRA_IMAGE)], drawing: Drawing
) -> dict[str, Any]:
    """An image made larger."""
    [image], warnings = await drawing.enlarged(body)
    return {"html_info": _html_of(warnings), "image": image}


@routes.post("/sdapi/v1/extra-batch-images")
async def extra_batch_images(
    caller: DrawerFromImage, body: Annotated[A1111ExtraImages, Depends(_EXTRA_IMAGES)], drawing: Drawing
) -> dict[str, Any]:
    """Images made larger, all in the same way."""
    images, warnings = await drawing.enlarged(body)
    return {"html_info": _html_of(warnings), "images": images}


@routes.post("/internal/progress")
async def task_progress(
    caller: Reader, task: Annotated[A1111Task, Depends(_TASK)], service: CurrentService, sessions: CurrentSessions
) -> dict[str, Any]:
    """How far one of the caller's requests is, by the force_task_id that it was given."""
    seen = task.id_live_preview if task.live_preview else None
    return await task_state(service, sessions.of(caller.name), task.id_task, seen)


@routes.get("/internal/ping")
async def ping(caller: Reader) -> dict[str, Any]:
    """What a page asks to see whether its server is there."""
    return {}


@routes.get("/login_check")
async def login_check(caller: Reader) -> bool:
    """Whether the caller may ask: one that may not gets 401."""
    return True


@routes.get("/internal/pending-tasks")
async def pending_tasks(caller: Reader, sessions: CurrentSessions) -> dict[str, Any]:
    """The ids of the caller's unfinished requests."""
    tasks = list(sessions.of(caller.name).tasks)
    return {"size": len(tasks), "tasks": tasks}


def _html_of(warnings: Sequence[str]) -> str:
    """What the page of the original would show of an enlarged image."""
    return "".join(f"<p>{html.escape(warning)}</p>" for warning in warnings)
