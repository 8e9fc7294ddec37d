"""AUTOMATIC1111's web API, as webuiapi, Open WebUI and SillyTavern call it. A translator, nothing else.

    POST /sdapi/v1/txt2img, /img2img, /interrupt, /skip       POST /sdapi/v1/png-info, /extra-single-image
    POST /sdapi/v1/extra-batch-images                         GET /sdapi/v1/progress
    GET, POST /sdapi/v1/options                               POST /internal/progress, GET /internal/pending-tasks

Every answer is JSON, `null` and `{}` included. The lists are in a1111_lists.py, the request in a1111_request.py,
what belongs to one caller in a1111_callers.py.
"""

import asyncio
import json
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from deployments.engine.errors import InvalidRequest, UnknownCheckpoint
from deployments.engine.types import Pixels
from serve_app.api.a1111.extras import A1111ExtraImage, A1111ExtraImages, ByModel, read_file
from serve_app.api.a1111.progress import overall, task_state
from serve_app.api.a1111.request import A1111ImageToImage, A1111Options, A1111TextToImage, a1111_names
from serve_app.api.a1111.result import result_of
from serve_app.api.a1111.sessions import CallerSession, CallerSessions
from serve_app.api.errors import error_response
from serve_app.api.field_errors import checked, fields_named
from serve_app.api.middleware import read_json
from serve_app.api.outcome import error_of, files_of, shown_images, shown_names
from serve_app.api.service import Service
from serve_app.api.waiting import ended
from serve_app.auth.caller import caller_of
from serve_app.config.settings import Settings
from serve_app.images.decode import decoded
from serve_app.images.infotext import parse_infotext, texts_of
from serve_app.jobs.states import JobState
from serve_app.planning.sizes import Size
from serve_app.schemas.upscale_request import UpscaleRequest


class A1111PngInfo(BaseModel):
    """The body of POST /sdapi/v1/png-info. image: base64, as it is or as a data URL."""

    image: str


class A1111Task(BaseModel):
    """The body of POST /internal/progress. id_live_preview: the last preview that the client has."""

    id_task: str
    id_live_preview: int = -1
    live_preview: bool = True


A1111_BODIES: tuple[type[BaseModel], ...] = (
    A1111TextToImage,
    A1111ImageToImage,
    A1111Options,
    A1111PngInfo,
    A1111ExtraImage,
    A1111ExtraImages,
    A1111Task,
)


# of an upscale that extras ask for -> A1111's fields
_EXTRAS_NAMES = {"upscaler": "upscaler_1", "width": "upscaling_resize", "height": "upscaling_resize"}


def a1111_routes(service: Service) -> APIRouter:
    """The routes that do something."""
    routes = APIRouter(tags=["AUTOMATIC1111"])
    limits = service.settings.limits
    sessions = CallerSessions()

    def session_of(request: Request) -> CallerSession:
        return sessions.of(caller_of(request).name)

    @routes.post("/sdapi/v1/txt2img", openapi_extra=_body(A1111TextToImage))
    async def txt2img(request: Request) -> Response:
        """Images from a prompt, when they are done. Interrupted, it answers without images."""
        body = await read_json(request, limits)
        return await drawn(request, A1111TextToImage.parse(body), body)

    @routes.post("/sdapi/v1/img2img", openapi_extra=_body(A1111ImageToImage))
    async def img2img(request: Request) -> Response:
        """Images from an image and a prompt; with a mask only what is white in it is painted."""
        body = await read_json(request, limits)
        asked = A1111ImageToImage.parse(body)
        return await drawn(request, asked, asked.repeated(body))

    async def drawn(request: Request, asked: A1111TextToImage, body: Any) -> Response:
        """body: what the answer repeats."""
        session = session_of(request)
        settings = service.settings_for(caller_of(request))
        generation = asked.generation(settings, chosen_model(session, settings), session.output_format)
        with a1111_names():
            job = await service.accept(generation, caller_of(request))
        if asked.override_settings_restore_afterwards is False:
            session.model = asked.overrides.model(settings) or session.model
        with session.working(job, asked.force_task_id):
            job = await ended(service, job, request)
        error = error_of(job)
        if error is not None and job.state is not JobState.CANCELLED:
            return error_response(error, request.scope, service.retry_after_s())
        images = shown_images(job)
        files = [] if asked.send_images is False else await files_of(service, images)
        # escaped, as what a request's other keys hold needn't be text that a file can hold
        return Response(json.dumps(result_of(job, body, images, files)), media_type="application/json")

    @routes.get("/sdapi/v1/progress")
    async def progress(request: Request, skip_current_image: bool = False) -> dict[str, Any]:
        """How far the caller's oldest unfinished request is."""
        return await overall(service, session_of(request), with_image=not skip_current_image)

    @routes.post("/sdapi/v1/interrupt")
    async def interrupt(request: Request) -> dict[str, Any]:
        """End all of the caller's requests; nobody else's."""
        session = session_of(request)
        session.interrupted = bool(session.jobs)
        await asyncio.gather(*(service.cancel(job.id) for job in session.jobs.values()))
        return {}

    @routes.post("/sdapi/v1/skip")
    async def skip(request: Request) -> None:
        """End the caller's oldest unfinished request."""
        session = session_of(request)
        oldest = next(iter(session.jobs.values()), None)
        if oldest is not None:
            session.skipped = True
            await service.cancel(oldest.id)

    @routes.get("/sdapi/v1/options")
    async def options(request: Request) -> dict[str, Any]:
        """The caller's choices, among what can't be chosen."""
        session = session_of(request)
        settings = service.settings_for(caller_of(request))
        model = chosen_model(session, settings) or settings.default_model
        output_format = session.output_format or service.settings.images.default_format
        return {
            "sd_model_checkpoint": model,
            "sd_checkpoint_hash": "",
            "sd_vae": "Automatic",
            "CLIP_stop_at_last_layers": 1,
            "samples_format": "jpg" if output_format == "jpeg" else output_format,
            "grid_save": False,
            "return_grid": False,
            "live_previews_enable": True,
        }

    @routes.post("/sdapi/v1/options", openapi_extra=_body(A1111Options))
    async def set_options(request: Request) -> None:
        """Choose the caller's model and file type; other keys are ignored."""
        chosen = A1111Options.parse(await read_json(request, limits))
        if chosen.CLIP_stop_at_last_layers not in (None, 1):
            raise InvalidRequest(
                "CLIP_stop_at_last_layers is each request's own: send it in override_settings",
                "CLIP_stop_at_last_layers",
            )
        settings = service.settings_for(caller_of(request))
        model = chosen.model(settings)
        if model is not None and model not in settings.generating():
            raise UnknownCheckpoint(f"sd_model_checkpoint is {model}, which only refines", "sd_model_checkpoint")
        session = session_of(request)
        session.model = model or session.model
        session.output_format = chosen.output_format or session.output_format

    @routes.post("/sdapi/v1/png-info", openapi_extra=_body(A1111PngInfo))
    async def png_info(request: Request) -> dict[str, Any]:
        """What an image file says of how it was made."""
        image = decoded("image", checked(A1111PngInfo, await read_json(request, limits)).image)
        texts = await asyncio.to_thread(texts_of, image)
        if texts is None:
            raise InvalidRequest("image is no PNG, JPEG or WebP file", "image")
        infotext, items = texts
        return {"info": infotext, "items": items, "parameters": parse_infotext(infotext) if infotext else {}}

    @routes.post("/sdapi/v1/extra-single-image", openapi_extra=_body(A1111ExtraImage))
    async def extra_single_image(request: Request) -> dict[str, Any]:
        """An image made larger."""
        asked = checked(A1111ExtraImage, await read_json(request, limits))
        asked.check(await asyncio.to_thread(service.upscalers.names))
        made = await asked.enlarged(limits.max_image_pixels, by_model(request), service.pictures)
        return {"html_info": "", "image": made}

    @routes.post("/sdapi/v1/extra-batch-images", openapi_extra=_body(A1111ExtraImages))
    async def extra_batch_images(request: Request) -> dict[str, Any]:
        """Images made larger, all in the same way."""
        asked = checked(A1111ExtraImages, await read_json(request, limits))
        asked.check(await asyncio.to_thread(service.upscalers.names))
        made = await asked.enlarged(limits.max_image_pixels, by_model(request), service.pictures)
        return {"html_info": "", "images": made}

    def by_model(request: Request) -> ByModel:
        """Enlarges a picture by a job of the caller's, which its interrupt ends."""

        async def enlarged(model: str, image: str, size: Size) -> Pixels:
            asked = UpscaleRequest(
                image=image, upscaler=model, width=size.width, height=size.height, output_format="png"
            )
            with fields_named(_EXTRAS_NAMES):
                job, _ = await service.accept_upscale(asked, caller_of(request))
            with session_of(request).working(job, None):
                job = await ended(service, job, request)
            error = error_of(job)
            if error is not None:
                raise error
            return await asyncio.to_thread(read_file, await service.images.read(shown_names(job)[0]))

        return enlarged

    @routes.post("/internal/progress", openapi_extra=_body(A1111Task))
    async def task_progress(request: Request) -> dict[str, Any]:
        """How far one of the caller's requests is, by the force_task_id that it was given."""
        task = checked(A1111Task, await read_json(request, limits))
        seen = task.id_live_preview if task.live_preview else None
        return await task_state(service, session_of(request), task.id_task, seen)

    @routes.get("/internal/pending-tasks")
    async def pending_tasks(request: Request) -> dict[str, Any]:
        """The ids of the caller's unfinished requests."""
        tasks = list(session_of(request).tasks)
        return {"size": len(tasks), "tasks": tasks}

    return routes


def _body(form: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{form.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def chosen_model(session: CallerSession, settings: Settings) -> str | None:
    """The model that was chosen at the session; an admin's choice may be none for another key of the tenant."""
    return session.model if session.model in settings.models else None
