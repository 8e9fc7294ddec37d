"""AUTOMATIC1111's web API, as webuiapi, Open WebUI and SillyTavern call it. A translator, nothing else.

    POST /sdapi/v1/txt2img, /img2img, /interrupt, /skip       POST /sdapi/v1/png-info, /extra-single-image
    POST /sdapi/v1/extra-batch-images                         GET /sdapi/v1/progress
    GET, POST /sdapi/v1/options                               POST /internal/progress, GET /internal/pending-tasks

Every answer is JSON, `null` and `{}` included. The lists are in lists.py, the requests in request.py and extras.py,
what belongs to one caller in sessions.py.
"""

import asyncio
import base64
import html
import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel
from pydantic_core import to_json

from deployments.engine.errors import InvalidRequest, UnknownCheckpoint
from deployments.engine.types import Pixels
from serve_app.api.a1111.default_options import DEFAULT_OPTIONS
from serve_app.api.a1111.extras import EXTRAS_UPSCALERS, A1111ExtraImage, A1111ExtraImages, ByModel
from serve_app.api.a1111.options import A1111Options, kept_options
from serve_app.api.a1111.progress import overall, task_state
from serve_app.api.a1111.replay import replay_of
from serve_app.api.a1111.request import NATIVE_NAMES, A1111ImageToImage, A1111TextToImage, Switch
from serve_app.api.a1111.result import result_of
from serve_app.api.a1111.sd_upscale import SCRIPT_NAME, SdUpscale, TileGrid, with_infotext
from serve_app.api.a1111.sessions import CallerSession, CallerSessions
from serve_app.api.a1111.translation import Folders, translated
from serve_app.api.bodies import PIXEL, JsonBody
from serve_app.api.errors import fields_named
from serve_app.api.outcome import ShownImage, completed, ended, error_of, files_of, leave, shown_images
from serve_app.api.service import RequestOrigin, Service
from serve_app.auth.caller import Caller
from serve_app.auth.route_scopes import Changer, DrawerFromImage, Reader, ReaderOfImage
from serve_app.config.settings import Settings
from serve_app.image_store.store import ImageName
from serve_app.images.decode import decoded, drawn_mask, picture_size, read_picture
from serve_app.images.infotext import infotext_of, parse_infotext, texts_of
from serve_app.images.stored_pictures import read_kept
from serve_app.jobs.job import Job
from serve_app.jobs.states import JobState
from serve_app.planning.resolve import DRAWN_SEEDS
from serve_app.planning.sizes import Size
from serve_app.provenance.ingredients import UsedPicture
from serve_app.schemas.digital_source_type import COMPOSITE
from serve_app.schemas.upscale_request import UpscaleRequest
from serve_app.schemas.validation import shown, validated


class A1111PngInfo(BaseModel):
    """The body of POST /sdapi/v1/png-info; the image is base64 or a data URL."""

    image: str


class A1111Task(BaseModel):
    """The body of POST /internal/progress; `id_live_preview` is the last preview that the client has."""

    id_task: str
    id_live_preview: int = -1
    live_preview: Switch = True


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
    strict = service.settings.a1111.strict
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
        repeated = body.repeated(request.state.json)
        if (body.script_name or "").strip().lower() == SCRIPT_NAME:
            return await drawn_in_tiles(request, caller, body, repeated)
        if 1 < len(body.init_images) <= (body.batch_size or 1):
            count, most = len(body.init_images) * (body.n_iter or 1), service.settings.limits.max_n
            if count > most:
                raise InvalidRequest(f"{shown(count)} images are asked for, at most {most}", "n_iter")
            pictures = body.init_images * (body.n_iter or 1)
            jobs, warnings = await drawn_together(request, caller, body, pictures)
            images = images_of_all(jobs)
            files = [] if body.send_images is False else await files_of(service, images)
            return answer_of(jobs[0], repeated, images, files, warnings)
        return await drawn(request, caller, body, repeated)

    async def folders() -> Folders:
        return await asyncio.to_thread(lambda: Folders(service.loras.names(), service.upscalers.names()))

    async def accepted(caller: Caller, body: A1111TextToImage) -> tuple[Job, tuple[str, ...]]:
        """The request's job, and what is to be said of it."""
        session = sessions.of(caller.name)
        settings = service.settings_for(caller)
        options = validated(A1111Options, {**session.options, **(body.override_settings or {})})
        if isinstance(body, A1111ImageToImage) and body.mask is not None and len(body.init_images) == 1:
            async with service.pictures.acquire(0):
                mask = await asyncio.to_thread(mask_of, body.init_images[0], body.mask, max_pixels)
            body = body.model_copy(update={"mask": mask})
        model = chosen_model(session, settings)
        generation, warnings = await asyncio.to_thread(translated, body, settings, options, model, await folders())
        with fields_named(NATIVE_NAMES):
            job, _ = await service.accept(generation, RequestOrigin(caller), blank_prompt=True)
        if body.override_settings_restore_afterwards is False:
            session.model = options.model(settings) or session.model
            session.options |= kept_options(body.override_settings or {})
        return job, warnings

    async def drawn(request: Request, caller: Caller, body: A1111TextToImage, repeated: Any) -> Response:
        """Draw, and answer with the images; `repeated` of the body."""
        job, warnings = await accepted(caller, body)
        with sessions.of(caller.name).working(job, body.force_task_id):
            job = await ended(service, job, request)
        images = images_of(job)
        files = [] if body.send_images is False else await files_of(service, images)
        return answer_of(job, repeated, images, files, warnings)

    async def drawn_in_tiles(request: Request, caller: Caller, body: A1111ImageToImage, repeated: Any) -> Response:
        """The same of the script SD upscale: a job for each tile of the enlarged picture."""
        models = await asyncio.to_thread(service.upscalers.names)
        script = SdUpscale.of(body.script_args, (*EXTRAS_UPSCALERS, *models), models)
        if len(body.init_images) != 1 or body.images != 1:
            field = "init_images" if body.images == 1 else "batch_size"
            raise InvalidRequest("SD upscale takes one image and makes one of it", field)
        with fields_named(NATIVE_NAMES):
            picture = await enlarged_for(request, caller, script, body.init_images[0])
        defaults = service.settings_for(caller).models[service.settings.default_model].defaults
        tile = Size(body.width or defaults.width, body.height or defaults.height)
        grid = TileGrid.of(Size(picture.shape[1], picture.shape[0]), tile, script.overlap)
        own = {"mask": None, "script_name": None, "width": grid.tile.width, "height": grid.tile.height}
        parts = await asyncio.to_thread(grid.parts, picture)
        jobs, said = await drawn_together(request, caller, body.model_copy(update=own), parts)
        drawn_tiles = [images_of(job) for job in jobs]
        first, warnings = drawn_tiles[0], (*said, *([] if script.warning is None else [script.warning]))
        if not all(drawn_tiles):  # interrupted
            return answer_of(jobs[0], repeated, [], [], warnings)
        files = [await service.images.read(images[0].name) for images in drawn_tiles]
        combined = await asyncio.to_thread(lambda: grid.combined([read_kept(file) for file in files]))
        drawn = await asyncio.to_thread(with_infotext, combined, infotext_of(first[0].manifest))
        used = [UsedPicture("init_images", body.init_images[0], began_with=True)]
        file = await service.credited(drawn, used, COMPOSITE, {"jobs": [job.id for job in jobs]})
        return answer_of(jobs[0], repeated, first, [] if body.send_images is False else [file], warnings)

    async def drawn_together(
        request: Request, caller: Caller, body: A1111ImageToImage, pictures: Sequence[str]
    ) -> tuple[list[Job], tuple[str, ...]]:
        """A job for each of several pictures, with one seed after the other; as they ended, and what is to be said."""
        seed = secrets.randbelow(DRAWN_SEEDS) if body.seed in (None, -1) else body.seed or 0
        jobs: list[Job] = []
        said: list[str] = []
        async with AsyncExitStack() as working:
            for number, picture in enumerate(pictures):
                own = {"init_images": [picture], "seed": seed + number, "batch_size": 1, "n_iter": 1}
                job, warnings = await accepted(caller, body.model_copy(update=own))
                said += warnings
                jobs.append(job)
                working.enter_context(sessions.of(caller.name).working(job, body.force_task_id))
                working.callback(leave_unfinished, service, jobs, number)
            for number, job in enumerate(jobs):
                jobs[number] = await ended(service, job, request)
        return jobs, tuple(dict.fromkeys(said))

    async def enlarged_for(request: Request, caller: Caller, script: SdUpscale, image: str) -> Pixels:
        """The picture that SD upscale draws over. Raises InvalidRequest."""
        size = script.size(Size(*await asyncio.to_thread(picture_size, "image", image, max_pixels)))
        if size.width * size.height > max_pixels:
            raise InvalidRequest(f"script_args: {size} has more than {max_pixels} pixels", "script_args")
        if script.model is not None:
            return await by_model(request, caller)(script.model, image, size)
        async with service.pictures.acquire(0):
            return await asyncio.to_thread(
                lambda: script.resized(read_picture("image", image, max_pixels).pixels, size)
            )

    def answer_of(
        job: Job, repeated: Any, images: list[ShownImage], files: list[bytes], warnings: Sequence[str]
    ) -> Response:
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
        own_format = service.settings.images.default_format
        return {
            **DEFAULT_OPTIONS,
            "samples_format": "jpg" if own_format == "jpeg" else own_format,
            **session.options,
            "sd_model_checkpoint": chosen_model(session, settings) or settings.default_model,
        }

    @routes.post("/sdapi/v1/options")
    async def set_options(caller: Changer, body: Annotated[A1111Options, Depends(_OPTIONS)], request: Request) -> None:
        """Choose the caller's model and options; keys that A1111 doesn't know are ignored."""
        settings = service.settings_for(caller)
        model = body.model(settings)
        if model is not None and model not in settings.generating():
            raise UnknownCheckpoint(f"sd_model_checkpoint is {model}, which only refines", "sd_model_checkpoint")
        session = sessions.of(caller.name)
        session.model = model or session.model
        session.options |= kept_options(request.state.json)

    @routes.post("/sdapi/v1/png-info")
    async def png_info(caller: ReaderOfImage, body: Annotated[A1111PngInfo, Depends(_PNG_INFO)]) -> dict[str, Any]:
        """The parameters in an image file, and the native request that they stand for here."""
        texts = await asyncio.to_thread(texts_of, decoded("image", body.image))
        if texts is None:
            raise InvalidRequest("image isn't a PNG, JPEG or WebP file", "image")
        infotext, items = texts
        told: dict[str, Any] = {"info": infotext, "items": items, "parameters": {}, "request": None, "warnings": ()}
        if infotext:
            told["parameters"] = parse_infotext(infotext)
            known = await folders()
            request, told["warnings"] = await asyncio.to_thread(
                replay_of, infotext, service.settings_for(caller), known
            )
            told["request"] = None if request is None else request.model_dump(mode="json", exclude_defaults=True)
        return told

    @routes.post("/sdapi/v1/extra-single-image")
    async def extra_single_image(
        caller: DrawerFromImage, body: Annotated[A1111ExtraImage, Depends(_EXTRA_IMAGE)], request: Request
    ) -> dict[str, Any]:
        """An image made larger."""
        body, warnings = body.with_known(await asyncio.to_thread(service.upscalers.names), strict=strict)
        enlarged = await body.enlarged(max_pixels, by_model(request, caller), service.pictures)
        return {"html_info": html_of(warnings), "image": await credited(body, body.image, enlarged)}

    @routes.post("/sdapi/v1/extra-batch-images")
    async def extra_batch_images(
        caller: DrawerFromImage, body: Annotated[A1111ExtraImages, Depends(_EXTRA_IMAGES)], request: Request
    ) -> dict[str, Any]:
        """Images made larger, all in the same way."""
        body, warnings = body.with_known(await asyncio.to_thread(service.upscalers.names), strict=strict)
        enlarged = await body.enlarged(max_pixels, by_model(request, caller), service.pictures)
        pairs = zip(body.images, enlarged, strict=True)
        images = [await credited(body, image.data, result) for image, result in pairs]
        return {"html_info": html_of(warnings), "images": images}

    async def credited(body: A1111ExtraImage | A1111ExtraImages, image: str, result: str) -> str:
        """An enlarged image, in base64, with its credentials."""
        used = [UsedPicture("image", image, began_with=True)]
        upscalers = {"upscalers": [{"name": name} for name in body.models]}
        file = await service.credited(base64.b64decode(result), used, body.source_type, upscalers)
        return base64.b64encode(file).decode()

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

    @routes.get("/internal/ping")
    async def ping(caller: Reader) -> dict[str, Any]:
        """What a page asks to see whether its server is there."""
        return {}

    @routes.get("/login_check")
    async def login_check(caller: Reader) -> bool:
        """Whether the caller may ask: one that may not gets 401."""
        return True

    @routes.get("/internal/pending-tasks")
    async def pending_tasks(caller: Reader) -> dict[str, Any]:
        """The ids of the caller's unfinished requests."""
        tasks = list(sessions.of(caller.name).tasks)
        return {"size": len(tasks), "tasks": tasks}

    return routes


def images_of(job: Job) -> list[ShownImage]:
    """The images of an ended job, none if it was interrupted. Raises the error that it ended with."""
    error = error_of(job)
    if error is not None and job.state is not JobState.CANCELLED:
        raise error
    return shown_images(job)


def images_of_all(jobs: Sequence[Job]) -> list[ShownImage]:
    """The images of several ended jobs. Raises the error of one that failed, or of one withheld if no image is left."""
    for job in jobs:
        if job.state is not JobState.BLOCKED:
            images_of(job)
    images = [image for job in jobs for image in shown_images(job)]
    for job in jobs if not images else ():
        images_of(job)
    return images


def leave_unfinished(service: Service, jobs: Sequence[Job], number: int) -> None:
    """Cancel one of several jobs, if their request ends before it does."""
    if not jobs[number].state.terminal:
        leave(service, jobs[number].id)


def html_of(warnings: Sequence[str]) -> str:
    """What the page of the original would show of an enlarged image."""
    return "".join(f"<p>{html.escape(warning)}</p>" for warning in warnings)


def mask_of(image: str, mask: str, max_pixels: int) -> str:
    """A request's mask as a native one: of the image's size, white where it is painted. Raises InvalidRequest."""
    with fields_named(NATIVE_NAMES):
        size = picture_size("image", image, max_pixels)
    return base64.b64encode(drawn_mask("mask", decoded("mask", mask), size, max_pixels)).decode()


def chosen_model(session: CallerSession, settings: Settings) -> str | None:
    """The model that was chosen at the session; an admin's choice may be none for another key of the tenant."""
    return session.model if session.model in settings.models else None
