"""Hugging Face's inference API, as InferenceClient's text_to_image and image_to_image call it. A translator.

    POST /models/{id}, /predict     {"inputs": prompt, "parameters": {…}} -> the image's bytes
                                    {"inputs": image, "parameters": {"prompt": …, …}} -> likewise
                                    an image's bytes alone, which is then drawn over without a prompt -> likewise

The client posts to the URL that it is given as its model: http://host/models/demo-sd15, or /predict for the default.
"""

import base64
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from deployments.engine.errors import InvalidRequest
from serve_app.api.errors import error_response
from serve_app.api.field_errors import checked, fields_named
from serve_app.api.middleware import read_body, read_json
from serve_app.api.outcome import error_of, files_of, shown_images
from serve_app.api.service import Service
from serve_app.api.waiting import ended
from serve_app.auth.caller import caller_of
from serve_app.config.settings import LimitsSettings
from serve_app.errors import NotFound
from serve_app.image_store.store import CONTENT_TYPES
from serve_app.schemas.generation_request import IMAGE_FIELDS, GenerationRequest

# Hugging Face's parameter -> the native field; the others that may be sent have one name in both
_FIELDS = {"num_inference_steps": "steps"}
_OTHERS = ("prompt", "model", "n", "preview", "webhook_url", *_FIELDS.values())
_SHARED = tuple(name for name in GenerationRequest.model_fields if name not in (*_OTHERS, *IMAGE_FIELDS))
# further ones where the inputs are an image
_OF_IMAGES = ("prompt", *IMAGE_FIELDS[1:])
_NAMES = {native: f"parameters.{name}" for name, native in _FIELDS.items()} | {
    name: f"parameters.{name}" for name in (*_SHARED, *_OF_IMAGES)
}


# what files of the three kinds begin with
_SIGNATURES = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"RIFF")


class HuggingFaceInputs(BaseModel):
    """The body of POST /models/{id} and /predict. `options` and the like are Hugging Face's own affair: ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    inputs: str = Field(description="The prompt; an image as base64 where the parameters hold the prompt.")
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description=f"{', '.join((*_FIELDS, *_SHARED))}; with an image {', '.join((*_OF_IMAGES, 'target_size'))} too.",
    )


_DOC = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"$ref": "#/components/schemas/HuggingFaceInputs"}},
            **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in CONTENT_TYPES.values()},
        },
    },
    "responses": {"200": {"content": {kind: {} for kind in CONTENT_TYPES.values()}, "description": "The image."}},
}


def huggingface_routes(service: Service) -> APIRouter:
    """The routes of one image from one prompt, or from an image and a prompt."""
    routes = APIRouter(tags=["Hugging Face"])

    async def draw(request: Request, model: str | None) -> Response:
        asked = await inputs_of(request, service.settings.limits)
        generation = generation_of(asked, model, request.headers.get("accept", ""))
        with fields_named(_names(asked)):
            job = await service.accept(generation, caller_of(request))
        job = await ended(service, job, request)
        error = error_of(job)
        if error is not None:
            return error_response(error, request.scope, service.retry_after_s())
        [image] = shown_images(job)
        [file] = await files_of(service, [image])
        return Response(file, media_type=image.name.content_type, headers={"X-Seed": str(image.seed)})

    @routes.post("/models/{model_id:path}", openapi_extra=_DOC, response_class=Response)
    async def model(model_id: str, request: Request) -> Response:
        """An image by the model that the URL names."""
        known = service.settings_for(caller_of(request)).generating()
        if model_id not in known:
            raise NotFound(f"no model {ascii(model_id)[:64]}; models: {', '.join(known)}", "model")
        return await draw(request, model_id)

    @routes.post("/predict", openapi_extra=_DOC, response_class=Response)
    async def predict(request: Request) -> Response:
        """An image by the default model."""
        return await draw(request, None)

    return routes


async def inputs_of(request: Request, limits: LimitsSettings) -> HuggingFaceInputs:
    """The body of a request; an image's bytes stand for it without parameters. Raises what read_json raises.

    Of bytes whose kind it wasn't told, InferenceClient says nothing.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("", *CONTENT_TYPES.values()):
        body = await read_body(request, limits)
        if kind or body.startswith(_SIGNATURES):
            return HuggingFaceInputs(inputs=base64.b64encode(body).decode(), parameters={"prompt": ""})
    return checked(HuggingFaceInputs, await read_json(request, limits))


def generation_of(asked: HuggingFaceInputs, model: str | None, accept: str) -> GenerationRequest:
    """What it asks for, in native words. Raises InvalidRequest."""
    from_image = "prompt" in asked.parameters
    fields: dict[str, Any] = {"image" if from_image else "prompt": asked.inputs}
    known = (*_FIELDS, *_SHARED, *(_OF_IMAGES if from_image else ()))
    if model is not None:
        fields["model"] = model
    accepted = _format_of(accept)
    if accepted is not None:
        fields["output_format"] = accepted
    for name, value in asked.parameters.items():
        if from_image and name == "target_size":
            fields |= _size(value)
            continue
        if name not in known:
            shown = name[:64].encode(errors="replace").decode()
            raise InvalidRequest(f"unknown parameter {shown!a}; parameters: {', '.join(known)}", f"parameters.{shown}")
        if value is not None:
            fields[_FIELDS.get(name, name)] = value
    with fields_named(_names(asked)):
        return GenerationRequest.parse(fields)


def _names(asked: HuggingFaceInputs) -> dict[str, str]:
    """Native field -> where it stands in this request."""
    return _NAMES | {"image" if "prompt" in asked.parameters else "prompt": "inputs"}


def _size(value: object) -> dict[str, Any]:
    """Width and height of `target_size`. Raises InvalidRequest."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not value.keys() <= {"width", "height"}:
        raise InvalidRequest("target_size is an object of width and height", "parameters.target_size")
    return {side: pixels for side, pixels in value.items() if pixels is not None}


def _format_of(accept: str) -> str | None:
    """The file type that an Accept header names first among ours; None where it leaves it open."""
    for part in accept.lower().split(","):
        media_type = part.partition(";")[0].strip()
        for output_format, content_type in CONTENT_TYPES.items():
            if media_type == content_type:
                return output_format
    return None
