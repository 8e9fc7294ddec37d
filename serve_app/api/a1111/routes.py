"""AUTOMATIC1111's web API, as webuiapi, Open WebUI and SillyTavern call it. A translator, nothing else.

    POST /sdapi/v1/txt2img, /img2img, /interrupt, /skip       POST /sdapi/v1/png-info, /extra-single-image
    POST /sdapi/v1/extra-batch-images                         GET /sdapi/v1/progress
    GET, POST /sdapi/v1/options                               POST /internal/progress, GET /internal/pending-tasks

Every answer is JSON, `null` and `{}` included. The lists are in lists.py, the requests in request.py and extras.py,
what belongs to one caller in sessions.py.
"""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel
from pydantic_core import to_json

from deployments.engine.errors import InvalidRequest, UnknownCheckpoint
from deployments.engine.types import Pixels
from serve_app.api.a1111.extras import A1111ExtraImage, A1111ExtraImages, ByModel
from serve_app.api.a1111.progress import overall, task_state
from serve_app.api.a1111.request import NATIVE_NAMES, A1111ImageToImage, A1111Options, A1111TextToImage
from serve_app.api.a1111.result import result_of
from serve_app.api.a1111.sessions import CallerSession, CallerSessions
from serve_app.api.bodies import PIXEL, JsonBody
from serve_app.api.errors import fields_named
from serve_app.api.outcome import completed, ended, error_of, files_of, shown_images
from serve_app.api.service import RequestOrigin, Service
from serve_app.auth.caller import Caller
from serve_app.auth.route_scopes import Changer, DrawerFromImage, Reader, ReaderOfImage
from serve_app.config.settings import Settings
from serve_app.image_store.store import ImageName
from serve_app.images.decode import decoded
from serve_app.images.infotext import parse_infotext, texts_of
from serve_app.images.stored_pictures import read_kept
from serve_app.jobs.states import JobState
from serve_app.planning.sizes import Size
from serve_app.schemas.upscale_request import UpscaleRequest


class A1111PngInfo(BaseModel):
    """The body of POST /sdapi/v1/png-info; the image is base64 or a data URL."""

    image: str


class A1111Task(BaseModel):
    """The body of POST /internal/progress; `id_live_preview` is the last preview that the client has."""

    id_task: str
    id_live_preview: int = -1
    live_preview: bool = True


# of an upscale that extras ask for -> A1111's fields
_EXTRAS_NAMES = {"upscaler": "upscaler_1", "width": "upscaling_resize", "height": "upscaling_resize"}


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


def a1111_routes(service: Service) -> APIRouter:
    """The routes that do something."""
    routes = APIRouter(tags=["AUTOMATIC1111"])
    max_pixels = service.settings.limits.max_image_pixels
    sessions = CallerSessions()

    @routes.post("/sdapi/v1/txt2img")
    async def txt2img(
        caller: DrawerFromImage, body: Annotated[A1111TextToImage, Depends(_TXT2IMG)], request: Request
    ) -> Response:
        """Images from a prompt, when they are done. Interrupted, it answers without images."""
        return await drawn(request, caller, body, request.state.json)

    @routes.post("/sdapi/v1/img2img")
    async def img2img(
        caller: DrawerFromImage, body: Annotated[A1111ImageToImage, Depends(_IMG2IMG)], request: Request
    ) -> Response:
        """Images from an image and a prompt; with a mask only what is white in it is painted."""
        return await drawn(request, caller, body, body.repeated(request.state.json))

    async def drawn(request: Request, caller: Caller, body: A1111TextToImage, repeated: Any) -> Response:
        """Draw, and answer with the images; `repeated` of the body."""
        session = sessions.of(caller.name)
        settings = service.settings_for(caller)
        chosen = A1111Options(
            sd_model_checkpoint=chosen_model(session, settings),
            samples_format=session.output_format,
            CLIP_stop_at_last_layers=session.clip_layers,
        )
        generation = body.generation(settings, chosen)
        warnings = body.warnings(settings, chosen.sd_model_checkpoint)
        with fields_named(NATIVE_NAMES):
            job, _ = await service.accept(generation, RequestOrigin(caller))
        if body.override_settings_restore_afterwards is False:
            session.model = body.overrides.model(settings) or session.model
        with session.working(job, body.force_task_id):
            job = await ended(service, job, request)
        error = error_of(job)
        if error is not None and job.state is not JobState.CANCELLED:
            raise error
        images = shown_images(job)
        files = [] if body.send_images is False else await files_of(service, images)
        # a number beyond all ranges may be among the request's other keys
        content = to_json(result_of(job, repeated, images, files, warnings), inf_nan_mode="null")
        return Response(content, media_type="application/json")

    @routes.get("/sdapi/v1/progress")
    async def progress(
        caller: Reader, skip_current_image: Annotated[bool, Query(examples=[True])] = False
    ) -> dict[str, Any]:
        """How far the caller's oldest unfinished request is."""
        return await overall(service, sessions.of(caller.name), with_image=not skip_current_image)

    @routes.post("/sdapi/v1/interrupt")
    async def interrupt(caller: Changer) -> dict[str, Any]:
        """End all requests of this caller."""
        session = sessions.of(caller.name)
        session.interrupted = bool(session.jobs)
        await asyncio.gather(*(service.cancel(job.id) for job in session.jobs.values()))
        return {}

    @routes.post("/sdapi/v1/skip")
    async def skip(caller: Changer) -> None:
        """End the caller's oldest unfinished request."""
        session = sessions.of(caller.name)
        oldest = next(iter(session.jobs.values()), None)
        if oldest is not None:
            session.skipped = True
            await service.cancel(oldest.id)

    @routes.get("/sdapi/v1/options")
    async def options(caller: Reader) -> dict[str, Any]:
        """The caller's choices, among what can't be chosen."""
        session = sessions.of(caller.name)
        settings = service.settings_for(caller)
        output_format = session.output_format or service.settings.images.default_format
        return {
            "sd_model_checkpoint": chosen_model(session, settings) or settings.default_model,
            "sd_checkpoint_hash": "",
            "sd_vae": "Automatic",
            "CLIP_stop_at_last_layers": session.clip_layers or 1,
            "samples_format": "jpg" if output_format == "jpeg" else output_format,
            "grid_save": False,
            "return_grid": False,
            "live_previews_enable": True,
        }

    @routes.post("/sdapi/v1/options")
    async def set_options(caller: Changer, body: Annotated[A1111Options, Depends(_OPTIONS)]) -> None:
        """Choose the caller's model, file type and CLIP layers; other keys are ignored."""
        settings = service.settings_for(caller)
        model = body.model(settings)
        if model is not None and model not in settings.generating():
            raise UnknownCheckpoint(f"sd_model_checkpoint is {model}, which only refines", "sd_model_checkpoint")
        session = sessions.of(caller.name)
        session.model = model or session.model
        session.output_format = body.output_format or session.output_format
        session.clip_layers = body.CLIP_stop_at_last_layers or session.clip_layers

    @routes.post("/sdapi/v1/png-info")
    async def png_info(caller: ReaderOfImage, body: Annotated[A1111PngInfo, Depends(_PNG_INFO)]) -> dict[str, Any]:
        """The parameters in an image file."""
        texts = await asyncio.to_thread(texts_of, decoded("image", body.image))
        if texts is None:
            raise InvalidRequest("image isn't a PNG, JPEG or WebP file", "image")
        infotext, items = texts
        return {"info": infotext, "items": items, "parameters": parse_infotext(infotext) if infotext else {}}

    @routes.post("/sdapi/v1/extra-single-image")
    async def extra_single_image(
        caller: DrawerFromImage, body: Annotated[A1111ExtraImage, Depends(_EXTRA_IMAGE)], request: Request
    ) -> dict[str, Any]:
        """An image made larger."""
        body.check(await asyncio.to_thread(service.upscalers.names))
        image = await body.enlarged(max_pixels, by_model(request, caller), service.pictures)
        return {"html_info": "", "image": image}

    @routes.post("/sdapi/v1/extra-batch-images")
    async def extra_batch_images(
        caller: DrawerFromImage, body: Annotated[A1111ExtraImages, Depends(_EXTRA_IMAGES)], request: Request
    ) -> dict[str, Any]:
        """Images made larger, all in the same way."""
        body.check(await asyncio.to_thread(service.upscalers.names))
        images = await body.enlarged(max_pixels, by_model(request, caller), service.pictures)
        return {"html_info": "", "images": images}

    def by_model(request: Request, caller: Caller) -> ByModel:
        """Enlarges a picture by a job of the caller's, which its interrupt ends."""

        async def enlarged(model: str, image: str, size: Size) -> Pixels:
            upscale = UpscaleRequest(
                image=image, upscaler=model, width=size.width, height=size.height, output_format="png"
            )
            with fields_named(_EXTRAS_NAMES):
                job, _ = await service.accept_upscale(upscale, RequestOrigin(caller))
            with sessions.of(caller.name).working(job, None):
                job = await completed(service, job, request)
            name = ImageName.parse((job.result or {})["images"][0]["name"])
            return await asyncio.to_thread(read_kept, await service.images.read(name))

        return enlarged

    @routes.post("/internal/progress")
    async def task_progress(caller: Reader, task: Annotated[A1111Task, Depends(_TASK)]) -> dict[str, Any]:
        """How far one of the caller's requests is, by the force_task_id that it was given."""
        seen = task.id_live_preview if task.live_preview else None
        return await task_state(service, sessions.of(caller.name), task.id_task, seen)

    @routes.get("/internal/pending-tasks")
    async def pending_tasks(caller: Reader) -> dict[str, Any]:
        """The ids of the caller's unfinished requests."""
        tasks = list(sessions.of(caller.name).tasks)
        return {"size": len(tasks), "tasks": tasks}

    return routes


def chosen_model(session: CallerSession, settings: Settings) -> str | None:
    """The model that was chosen at the session; an admin's choice may be none for another key of the tenant."""
    return session.model if session.model in settings.models else None
