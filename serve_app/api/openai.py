"""OpenAI's Images API: generations and models, as the `openai` package calls them. A translator, nothing else.

    POST /v1/images/generations     also as a stream, with partial images
    GET  /v1/models, /v1/models/{id}

What is asked for is in openai_request.py, the stream in openai_stream.py.
"""

import base64
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from deployments.engine.errors import UnknownCheckpoint
from serve_app.api.caller import caller_of
from serve_app.api.errors import error_response
from serve_app.api.idempotency_key import KEY_PARAMETER
from serve_app.api.intake import read_json
from serve_app.api.openai_request import OpenAIImageRequest, sizes_named
from serve_app.api.openai_stream import NO_USAGE, image_stream
from serve_app.api.outcome import ShownImage, error_of, files_of, shown_images
from serve_app.api.paths import Paths
from serve_app.api.retries import take
from serve_app.api.service import Service
from serve_app.api.waiting import ended
from serve_app.jobs.job import Job

# of OpenAI's qualities those that an answer may name
_ANSWERED_QUALITIES = ("low", "medium", "high", "xhigh", "max")

_GENERATIONS_DOC = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/OpenAIImageRequest"}}},
    },
    "parameters": [KEY_PARAMETER],
    "responses": {"200": {"content": {"application/json": {}, "text/event-stream": {}}}},
}


def openai_routes(service: Service) -> APIRouter:
    """The routes under /v1."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI"])
    limits = service.settings.limits

    @routes.post("/images/generations", openapi_extra=_GENERATIONS_DOC, response_class=JSONResponse)
    async def generations(request: Request) -> Response:
        """Images from a prompt: as JSON when they are done, or with `stream` as server-sent events."""
        body = await read_json(request, limits)
        asked = OpenAIImageRequest.parse(body)
        generation = asked.generation()
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
        return JSONResponse(_answer(job, asked, data), headers=headers)

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


def _answer(job: Job, asked: OpenAIImageRequest, data: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "created": int(job.created_at.timestamp()),
        "background": "opaque",
        "data": data,
        "output_format": job.request["output_format"],
        "quality": asked.quality if asked.quality in _ANSWERED_QUALITIES else None,
        "size": f"{job.request['width']}x{job.request['height']}",
        "usage": NO_USAGE,
    }


def _about(image: ShownImage) -> dict[str, Any]:
    """revised_prompt: prompts aren't rewritten here. seed: ours, draws this image alone again."""
    return {"revised_prompt": None, "seed": image.seed}


def _url(request: Request, paths: Paths, image: ShownImage) -> str:
    return f"{request.url.scheme}://{request.url.netloc}{paths.image(str(image.name))}"


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "darkroom"}
