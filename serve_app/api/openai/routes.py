"""OpenAI's Images API, as the `openai` package calls it. A translator, nothing else.

    POST /v1/images/generations     from a prompt; also as a stream, with partial images
    POST /v1/images/edits           from a picture, a prompt, and a mask that is transparent where it is to be painted
    POST /v1/images/variations      from a picture
    GET  /v1/models, /v1/models/{id}

What is asked for is in openai_request.py and openai_edits.py, the stream in openai_stream.py.
"""

import asyncio
import base64
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from deployments.engine.errors import UnknownCheckpoint
from serve_app.api.errors import error_response
from serve_app.api.idempotency_key import KEY_PARAMETER
from serve_app.api.links import Paths
from serve_app.api.middleware import read_json
from serve_app.api.multipart import FORM_TYPE, read_form
from serve_app.api.openai.edits import OpenAIEditRequest, OpenAIVariationRequest, files_asked, fingerprinted
from serve_app.api.openai.request import OpenAIImageRequest, sizes_named
from serve_app.api.openai.retries import take
from serve_app.api.openai.stream import NO_USAGE, image_stream
from serve_app.api.outcome import ShownImage, error_of, files_of, shown_images
from serve_app.api.service import Service
from serve_app.api.waiting import ended
from serve_app.auth.caller import caller_of
from serve_app.jobs.job import Job
from serve_app.schemas.generation_request import GenerationRequest

# of OpenAI's qualities those that an answer may name
_ANSWERED_QUALITIES = ("low", "medium", "high", "xhigh", "max")


def _doc(content_type: str, body: type[OpenAIImageRequest], **files: object) -> dict[str, Any]:
    schema: dict[str, Any] = {"$ref": f"#/components/schemas/{body.__name__}"}
    if files:
        schema = {"allOf": [schema, {"type": "object", "properties": files, "required": ["image"]}]}
    return {
        "requestBody": {"required": True, "content": {content_type: {"schema": schema}}},
        "parameters": [KEY_PARAMETER],
        "responses": {"200": {"content": {"application/json": {}, "text/event-stream": {}}}},
    }


_FILE = {"type": "string", "format": "binary"}
_GENERATIONS_DOC = _doc("application/json", OpenAIImageRequest)
_EDITS_DOC = _doc(FORM_TYPE, OpenAIEditRequest, image=_FILE, mask=_FILE)
_VARIATIONS_DOC = _doc(FORM_TYPE, OpenAIVariationRequest, image=_FILE)


def openai_routes(service: Service) -> APIRouter:
    """The routes under /v1."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI"])
    limits = service.settings.limits

    @routes.post("/images/generations", openapi_extra=_GENERATIONS_DOC, response_class=JSONResponse)
    async def generations(request: Request) -> Response:
        """Images from a prompt: as JSON when they are done, or with `stream` as server-sent events."""
        body = await read_json(request, limits)
        asked = OpenAIImageRequest.parse(body)
        return await answered(request, asked, asked.generation(), body)

    @routes.post("/images/edits", openapi_extra=_EDITS_DOC, response_class=JSONResponse)
    async def edits(request: Request) -> Response:
        """A picture painted anew, or with `mask` where that is transparent; answers as generations do."""
        return await from_picture(request, OpenAIEditRequest)

    @routes.post("/images/variations", openapi_extra=_VARIATIONS_DOC, response_class=JSONResponse)
    async def variations(request: Request) -> Response:
        """Pictures like a picture."""
        return await from_picture(request, OpenAIVariationRequest)

    async def from_picture(request: Request, form: type[OpenAIEditRequest]) -> Response:
        body = await read_form(request, limits)
        asked = form.parse_form(body, limits)
        image, mask = files_asked(body, form.files)
        generation = await asyncio.to_thread(asked.generation_from, image, mask, limits.max_image_pixels)
        return await answered(request, asked, generation, fingerprinted(body))

    async def answered(
        request: Request, asked: OpenAIImageRequest, generation: GenerationRequest, body: Mapping[str, Any]
    ) -> Response:
        """body: as JSON values, by which a retry is known."""
        with sizes_named():  # (a stream has begun when its client can lose it, and the SDKs repeat none that has)
            taken = await take(service, request, generation, {} if asked.stream else body)
        headers = {"Idempotent-Replayed": "true"} if taken.again else {}
        if asked.stream:
            headers |= {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
            events = image_stream(service, taken.job, asked, taken.left)
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        job = await ended(service, taken.job, request, taken.left)
        error = error_of(job)
        if error is not None:
            return error_response(error, request.scope, service.retry_after_s())
        images = shown_images(job)
        if asked.response_format == "url":
            paths = Paths.of(request, service.settings.access.image_link_s)
            data = [{"url": _url(request, paths, image), **_about(image)} for image in images]
        else:
            files = await files_of(service, images)
            data = [
                {"b64_json": base64.b64encode(file).decode(), **_about(image)}
                for image, file in zip(images, files, strict=True)
            ]
        return JSONResponse(_answer(job, asked, images[0].size, data), headers=headers)

    @routes.get("/models")
    async def models(request: Request) -> dict[str, Any]:
        """The models that a request may name."""
        return {
            "object": "list",
            "data": [_model(name) for name in service.settings_for(caller_of(request)).generating()],
        }

    @routes.get("/models/{model_id}")
    async def model(model_id: str, request: Request) -> dict[str, Any]:
        """One model."""
        known = service.settings_for(caller_of(request)).generating()
        if model_id not in known:
            raise UnknownCheckpoint(f"unknown model {ascii(model_id)[:64]}; models: {', '.join(known)}", "model")
        return _model(model_id)

    return routes


def _answer(job: Job, asked: OpenAIImageRequest, size: str, data: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "created": int(job.created_at.timestamp()),
        "background": "opaque",
        "data": data,
        "output_format": job.request["output_format"],
        "quality": asked.quality if asked.quality in _ANSWERED_QUALITIES else None,
        "size": size,
        "usage": NO_USAGE,
    }


def _about(image: ShownImage) -> dict[str, Any]:
    """revised_prompt: prompts aren't rewritten here. seed: ours, draws this image alone again."""
    return {"revised_prompt": None, "seed": image.seed}


def _url(request: Request, paths: Paths, image: ShownImage) -> str:
    return f"{request.url.scheme}://{request.url.netloc}{paths.image(str(image.name))}"


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "darkroom"}
