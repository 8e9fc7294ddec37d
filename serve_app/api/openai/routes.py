"""OpenAI's Images API, as the `openai` package calls it. A translator, nothing else.

    POST /v1/images/generations     from a prompt; also as a stream, with partial images
    POST /v1/images/edits           from a picture, a prompt, and a mask that is transparent where it is to be painted
    POST /v1/images/variations      from a picture
    POST /v1/images/inpainting      as edits, but the mask is white where it is to be painted (LocalAI, Xinference)
    POST /v1/images/upscale         a larger picture (Lemonade)
    GET  /v1/images/{id}/content    the first image of an answer's id (SGLang)
    GET  /v1/models, /v1/models/{id}

The first three are there without /v1 too, and the first two at Azure's paths: /openai/deployments/{model}/images/….

What is asked for is in request.py and edits.py, the stream in stream.py.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import JSONResponse

from deployments.engine.errors import UnknownCheckpoint
from serve_app.api.bodies import PIXEL, Form, IdempotencyKey, JsonBody
from serve_app.api.errors import fields_named
from serve_app.api.native.job_view import Paths
from serve_app.api.native.routes import JobId
from serve_app.api.openai.answer import Address, image_answer, image_entry
from serve_app.api.openai.edits import (
    FormBody,
    OpenAIEditRequest,
    OpenAIInpaintingRequest,
    OpenAIVariationRequest,
    files_asked,
    fingerprinted,
)
from serve_app.api.openai.request import OpenAIImageRequest
from serve_app.api.openai.retries import take
from serve_app.api.openai.stream import image_stream
from serve_app.api.openai.upscale import OpenAIUpscaleRequest
from serve_app.api.outcome import cancelled, completed, error_of, kept
from serve_app.api.service import RequestOrigin, Service
from serve_app.api.shared import CurrentService
from serve_app.api.sse import EventStream
from serve_app.auth.caller import Caller
from serve_app.auth.route_scopes import Drawer, DrawerFromImage, Reader
from serve_app.errors import UnknownImage
from serve_app.image_store.store import CONTENT_TYPES, ImageName
from serve_app.jobs.job import Job
from serve_app.schemas.generation_request import GenerationRequest

_IMAGE: dict[int | str, Any] = {200: {"content": {kind: {} for kind in CONTENT_TYPES.values()}}}
_ANSWERS: dict[int | str, Any] = {200: {"content": {"application/json": {}, "text/event-stream": {}}}}

_GENERATION = {
    "prompt": "a large red circle on a blue background",
    "model": "demo-sd15",
    "size": "256x256",
    "n": 1,
    "seed": 4,
}
_EDIT = {"prompt": "a large green ring", "size": "256x256", "strength": "0.7", "seed": "4"}
_UPSCALE = {"image": PIXEL, "scale": 2}
_VARIATION = {"n": "1", "size": "256x256", "seed": "4"}

routes = APIRouter(prefix="/v1", tags=["OpenAI"])
# the same elsewhere
other_paths = APIRouter(include_in_schema=False)


@routes.post("/images/generations", responses=_ANSWERS, response_class=JSONResponse)
async def generations(
    caller: Drawer,
    body: Annotated[OpenAIImageRequest, Depends(JsonBody(OpenAIImageRequest, _GENERATION))],
    key: IdempotencyKey,
    service: CurrentService,
    request: Request,
) -> Response:
    """Images from a prompt: as JSON when they are done, or with `stream` as server-sent events."""
    origin = RequestOrigin(caller, key)
    return await _answered(service, request, origin, body, body.generation(), body.model_dump(exclude_unset=True))


@routes.post("/images/edits", responses=_ANSWERS, response_class=JSONResponse)
async def edits(
    caller: DrawerFromImage,
    form: Annotated[Form, Depends(FormBody(OpenAIEditRequest, _EDIT))],
    key: IdempotencyKey,
    service: CurrentService,
    request: Request,
) -> Response:
    """A picture painted anew, or with `mask` where that is transparent; answers as generations do."""
    return await _from_picture(service, request, RequestOrigin(caller, key), OpenAIEditRequest, form)


@routes.post("/images/variations", responses=_ANSWERS, response_class=JSONResponse)
async def variations(
    caller: DrawerFromImage,
    form: Annotated[Form, Depends(FormBody(OpenAIVariationRequest, _VARIATION))],
    key: IdempotencyKey,
    service: CurrentService,
    request: Request,
) -> Response:
    """Pictures like a picture."""
    return await _from_picture(service, request, RequestOrigin(caller, key), OpenAIVariationRequest, form)


@routes.post("/images/inpainting", responses=_ANSWERS, response_class=JSONResponse)
async def inpainting(
    caller: DrawerFromImage,
    form: Annotated[Form, Depends(FormBody(OpenAIInpaintingRequest, _EDIT))],
    key: IdempotencyKey,
    service: CurrentService,
    request: Request,
) -> Response:
    """A picture painted anew where `mask` is white, as LocalAI has it."""
    return await _from_picture(service, request, RequestOrigin(caller, key), OpenAIInpaintingRequest, form)


@routes.post("/images/upscale", responses=_ANSWERS, response_class=JSONResponse)
async def upscale(
    caller: DrawerFromImage,
    body: Annotated[OpenAIUpscaleRequest, Depends(JsonBody(OpenAIUpscaleRequest, _UPSCALE))],
    key: IdempotencyKey,
    service: CurrentService,
    request: Request,
) -> Response:
    """A larger picture, as Lemonade has it."""
    with fields_named({"upscaler": "model"}):
        job, replayed = await service.accept_upscale(body.upscaling(), RequestOrigin(caller, key))
    job = await completed(service, job, request, cancelled if key is None else kept)
    headers = {"Idempotent-Replayed": "true"} if replayed else {}
    address = _addresses(service, request, caller)
    return JSONResponse(
        {
            "id": job.id,
            "created": int(job.created_at.timestamp()),
            "data": [await image_entry(service, body.response_format, _first_image(job), None, address)],
            "output_format": job.request["output_format"],
            "size": f"{job.request['width']}x{job.request['height']}",
        },
        headers=headers,
    )


def _addresses(service: Service, request: Request, caller: Caller) -> Address:
    paths = Paths.of(request, caller, service.settings.access.image_link_s)
    return lambda name: f"{request.url.scheme}://{request.url.netloc}{paths.image(name)}"


for path, route in (("generations", generations), ("edits", edits), ("variations", variations)):
    other_paths.add_api_route(f"/images/{path}", route, methods=["POST"], response_class=JSONResponse)


@other_paths.post("/openai/deployments/{model}/images/generations", response_class=JSONResponse)
async def azure_generations(
    caller: Drawer,
    model: str,
    body: Annotated[OpenAIImageRequest, Depends(JsonBody(OpenAIImageRequest, _GENERATION))],
    key: IdempotencyKey,
    service: CurrentService,
    request: Request,
) -> Response:
    return await generations(caller, body.model_copy(update={"model": model}), key, service, request)


@other_paths.post("/openai/deployments/{model}/images/edits", response_class=JSONResponse)
async def azure_edits(
    caller: DrawerFromImage,
    model: str,
    form: Annotated[Form, Depends(FormBody(OpenAIEditRequest, _EDIT))],
    key: IdempotencyKey,
    service: CurrentService,
    request: Request,
) -> Response:
    return await edits(caller, replace(form, texts={**form.texts, "model": model}), key, service, request)


@routes.get("/images/{job_id}/content", responses=_IMAGE, response_class=Response)
async def content(caller: Reader, job_id: JobId, service: CurrentService) -> Response:
    """The first image that may be seen of the request whose answer has this id."""
    job = await service.store.get(job_id, tenant=caller.sees)
    error = error_of(job) if job.state.terminal else UnknownImage("no image of this request is drawn yet")
    if error is not None:
        raise error
    name = _first_image(job)
    return Response(await service.image(name, caller.sees), media_type=name.content_type)


async def _from_picture(
    service: Service, request: Request, origin: RequestOrigin, model: type[OpenAIEditRequest], form: Form
) -> Response:
    limits = service.settings.limits
    body = model.parse_form(form, limits)
    image, mask = files_asked(form, model.files)
    generation = await asyncio.to_thread(body.generation_from, image, mask, limits.max_image_pixels)
    return await _answered(service, request, origin, body, generation, fingerprinted(form))


async def _answered(
    service: Service,
    request: Request,
    origin: RequestOrigin,
    body: OpenAIImageRequest,
    generation: GenerationRequest,
    values: Mapping[str, Any],
) -> Response:
    """Draw, and answer with images or a stream; a retry is recognised by `values`, the body as JSON."""
    # (a stream has begun when its client can lose it, and the SDKs repeat none that has)
    model = service.settings.openai.aliases.get(generation.model or "", generation.model)
    generation = generation.model_copy(update={"model": model})
    with fields_named(body.native_names):
        taken = await take(service, request, origin, generation, {} if body.stream else values)
    headers = {"Idempotent-Replayed": "true"} if taken.again else {}
    if body.stream:
        events = image_stream(service, taken.job, body, taken.left)
        return EventStream(events, headers)
    job = await completed(service, taken.job, request, taken.left)
    answer = await image_answer(service, job, body, _addresses(service, request, origin.caller))
    return JSONResponse(answer, headers=headers)


@routes.get("/models")
async def models(caller: Reader, service: CurrentService) -> dict[str, Any]:
    """The models that a request may name."""
    return {
        "object": "list",
        "data": [_model(name) for name in service.settings_for(caller).generating()],
    }


@routes.get("/models/{model_id}")
async def model(
    caller: Reader, model_id: Annotated[str, Path(examples=["demo-sd15"])], service: CurrentService
) -> dict[str, Any]:
    """One model, by its name or an alias."""
    known = service.settings_for(caller).generating()
    if service.settings.openai.aliases.get(model_id, model_id) not in known:
        raise UnknownCheckpoint(f"unknown model {ascii(model_id)[:64]}; models: {', '.join(known)}", "model")
    return _model(model_id)


def _first_image(job: Job) -> ImageName:
    """Of those that may be seen, of which there is one."""
    return next(ImageName.parse(one["name"]) for one in (job.result or {})["images"] if one["name"] is not None)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "darkroom"}
