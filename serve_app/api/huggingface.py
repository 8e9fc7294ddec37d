"""Hugging Face's inference API, as InferenceClient's text_to_image and image_to_image call it. A translator.

    POST /models/{id}, /predict     {"inputs": prompt, "parameters": {…}} -> the image's bytes
                                    {"inputs": image, "parameters": {…}} -> likewise, with a prompt or without
                                    an image's bytes alone, which is then drawn over without a prompt -> likewise

The client posts to the URL that it is given as its model: http://host/models/demo-sd15, or /predict for the default, or
the service's own address, with /v1 or without.
"""

import base64
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from deployments.engine.errors import InvalidRequest
from serve_app.api.bodies import FILE_SCHEMA, JSON_TYPE, RequestBody, media_type, read_body, read_json, schema_of
from serve_app.api.errors import fields_named
from serve_app.api.outcome import completed, files_of, shown_images
from serve_app.api.service import RequestOrigin, Service
from serve_app.api.shared import CurrentService
from serve_app.auth.caller import Caller
from serve_app.auth.route_scopes import DrawerFromImage
from serve_app.errors import NotFound
from serve_app.image_store.store import CONTENT_TYPES
from serve_app.images.decode import is_picture
from serve_app.schemas.generation_request import IMAGE_FIELDS, GenerationRequest
from serve_app.schemas.validation import validated

# Hugging Face's parameter -> the native field; the others that may be sent have one name in both
_FIELDS = {"num_inference_steps": "steps"}
_OTHERS = ("prompt", "model", "n", "preview", "webhook_url", *_FIELDS.values())
_SHARED = tuple(name for name in GenerationRequest.model_fields if name not in (*_OTHERS, *IMAGE_FIELDS))
# a pipeline's arguments that ask for what is answered anyway -> the value that does
_AS_ANSWERED: dict[str, tuple[object, ...]] = {
    "num_images_per_prompt": (1,),
    "output_type": ("pil",),
    "return_dict": (True, False),
}
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

    inputs: str = Field(description="The prompt, or an image as base64 or a data URL.")
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description=f"{', '.join((*_FIELDS, *_SHARED))}; with an image {', '.join((*_OF_IMAGES, 'target_size'))} too.",
    )


_IMAGE: dict[int | str, Any] = {
    200: {"content": {kind: {} for kind in CONTENT_TYPES.values()}, "description": "The image."}
}


class InputsBody(RequestBody):
    """Reads JSON, or an image's bytes as inputs without parameters, for which InferenceClient sends no type."""

    model = HuggingFaceInputs

    @property
    def content(self) -> dict[str, Any]:
        example = {
            "inputs": "a large red circle on a blue background",
            "parameters": {"seed": 4, "num_inference_steps": 20},
        }
        image = {"schema": FILE_SCHEMA, "example": "the bytes of a file"}
        return {
            JSON_TYPE: {"schema": schema_of(self.model), "example": example},
            **dict.fromkeys(CONTENT_TYPES.values(), image),
        }

    async def __call__(self, request: Request) -> HuggingFaceInputs:
        kind = media_type(request)
        if kind in ("", *CONTENT_TYPES.values()):
            body = await read_body(request)
            if kind or body.startswith(_SIGNATURES):
                return HuggingFaceInputs(inputs=base64.b64encode(body).decode(), parameters={"prompt": ""})
        return validated(HuggingFaceInputs, await read_json(request))


Inputs = Annotated[HuggingFaceInputs, Depends(InputsBody())]

routes = APIRouter(tags=["Hugging Face"])


async def _drawn(
    service: Service, request: Request, caller: Caller, inputs: HuggingFaceInputs, model: str | None
) -> Response:
    generation = generation_of(inputs, model, request.headers.get("accept", ""))
    with fields_named(_names(inputs)):
        job, _ = await service.accept(generation, RequestOrigin(caller))
    [image] = shown_images(await completed(service, job, request))
    [file] = await files_of(service, [image])
    return Response(file, media_type=image.name.content_type, headers={"X-Seed": str(image.seed)})


@routes.post("/models/{model_id:path}", responses=_IMAGE, response_class=Response)
async def model(
    caller: DrawerFromImage,
    model_id: Annotated[str, Path(examples=["demo-sd15"])],
    inputs: Inputs,
    service: CurrentService,
    request: Request,
) -> Response:
    """An image by the model that the URL names."""
    known = service.settings_for(caller).generating()
    if model_id not in known:
        raise NotFound(f"no model {ascii(model_id)[:64]}; models: {', '.join(known)}", "model")
    return await _drawn(service, request, caller, inputs, model_id)


@routes.post("/", include_in_schema=False)
@routes.post("/v1", include_in_schema=False)
@routes.post("/predict", responses=_IMAGE, response_class=Response)
async def predict(caller: DrawerFromImage, inputs: Inputs, service: CurrentService, request: Request) -> Response:
    """An image by the default model."""
    return await _drawn(service, request, caller, inputs, None)


def _from_image(inputs: HuggingFaceInputs) -> bool:
    """Whether the inputs are an image: the prompt is among the parameters, or they are the file of one."""
    return "prompt" in inputs.parameters or is_picture(inputs.inputs)


def generation_of(inputs: HuggingFaceInputs, model: str | None, accept: str) -> GenerationRequest:
    """What it asks for, in native words. Raises InvalidRequest."""
    from_image = _from_image(inputs)
    fields: dict[str, Any] = {"prompt": "", "image": inputs.inputs} if from_image else {"prompt": inputs.inputs}
    known = (*_FIELDS, *_SHARED, *(_OF_IMAGES if from_image else ()))
    if model is not None:
        fields["model"] = model
    accepted = _format_of(accept)
    if accepted is not None:
        fields["output_format"] = accepted
    for name, value in inputs.parameters.items():
        if from_image and name == "target_size":
            fields |= _size(value)
            continue
        if name in _AS_ANSWERED:
            if value is not None and value not in _AS_ANSWERED[name]:
                message = f"{name} is {ascii(value)[:64]}: the answer is one image's file"
                raise InvalidRequest(message, f"parameters.{name}")
            continue
        if name not in known:
            shown = name[:64].encode(errors="replace").decode()
            raise InvalidRequest(f"unknown parameter {shown!a}; parameters: {', '.join(known)}", f"parameters.{shown}")
        if value is not None:
            fields[_FIELDS.get(name, name)] = value
    with fields_named(_names(inputs)):
        return validated(GenerationRequest, fields)


def _names(inputs: HuggingFaceInputs) -> dict[str, str]:
    """Native field -> where it stands in this request."""
    return _NAMES | {"image" if _from_image(inputs) else "prompt": "inputs"}


def _size(value: object) -> dict[str, Any]:
    """Width and height of `target_size`. Raises InvalidRequest."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not value.keys() <= {"width", "height"}:
        raise InvalidRequest("target_size must be an object with width and height", "parameters.target_size")
    return {side: pixels for side, pixels in value.items() if pixels is not None}


def _format_of(accept: str) -> str | None:
    """The file type that an Accept header names first among ours; None where it leaves it open."""
    for part in accept.lower().split(","):
        media_type = part.partition(";")[0].strip()
        for output_format, content_type in CONTENT_TYPES.items():
            if media_type == content_type:
                return output_format
    return None
