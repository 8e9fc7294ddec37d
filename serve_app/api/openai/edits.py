"""OpenAI's edits and variations, and what they ask of us: a form or JSON with a picture, else a generation's fields.

Where OpenAI's mask is transparent, ours is white.
"""

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field
from starlette.requests import Request

from deployments.engine.errors import InvalidRequest
from serve_app.api.bodies import (
    FILE_SCHEMA,
    FORM_TYPE,
    JSON_TYPE,
    Form,
    RequestBody,
    media_type,
    parse_json,
    read_form,
    read_json,
    schema_of,
)
from serve_app.api.errors import fields_named
from serve_app.api.openai.request import EXTRA_FIELDS, OpenAIImageRequest
from serve_app.config.settings import LimitsSettings
from serve_app.images.decode import decoded, mask_of_transparency
from serve_app.schemas.generation_request import GenerationRequest
from serve_app.schemas.validation import validated

# how far a variation goes from its picture: far enough to be another, near enough to be of it
_VARIATION_STRENGTH = 0.6

# "field[][member]"
_LIST_NAME = re.compile(r"([^\[\]]+)\[\]\[([^\[\]]+)\]")

# "field", "field[part]", "field[part][part of it]"
_NAME = re.compile(r"([^\[\]]+)((?:\[[^\[\]]+\])*)")


class OpenAIEditRequest(OpenAIImageRequest):
    """The form of POST /v1/images/edits, but for its files. Numbers are texts there, objects JSON or `name[part]`."""

    extra_fields: ClassVar[tuple[str, ...]] = (*EXTRA_FIELDS, "strength", "fit", "inpaint", "outpaint")
    event: ClassVar[str] = "image_edit"
    files: ClassVar[tuple[str, ...]] = ("image", "mask")
    needed_files: ClassVar[tuple[str, ...]] = ("image",)

    model_config = ConfigDict(strict=False)

    input_fidelity: Literal["high", "low"] | None = None

    @classmethod
    def parse_form(cls, form: Form, limits: LimitsSettings) -> Self:
        """A request from a form. Raises InvalidRequest, UnreadableRequest."""
        body: dict[str, Any] = {}
        for name in (*form.texts, *form.lists):
            if name.partition("[")[0] in cls.files:
                raise InvalidRequest(f"{name[:64]!a} must be a file", name.partition("[")[0])
        for name, text in form.texts.items():
            _put(body, name, parse_json(text.encode(), limits) if _is_json(name, text) else text)
        for name, texts in form.lists.items():
            _put_list(body, name, texts)
        return validated(cls, body)

    def generation_from(self, image: bytes, mask: bytes | None, max_pixels: int) -> GenerationRequest:
        """What it asks for, in native words. Takes a mask apart: call it in a thread. Raises InvalidRequest."""
        fields = {**self.native_fields(), "image": base64.b64encode(image).decode()}
        if mask is not None:
            fields["mask"] = base64.b64encode(mask_of_transparency("mask", mask, max_pixels)).decode()
        with fields_named(self.native_names):
            return validated(GenerationRequest, fields, of_texts=True)


class OpenAIInpaintingRequest(OpenAIEditRequest):
    """The form of POST /v1/images/inpainting (LocalAI, Xinference), but for its files: the mask is white to paint."""

    files: ClassVar[tuple[str, ...]] = ("image", "mask", "mask_image")
    needed_files: ClassVar[tuple[str, ...]] = ("image", "mask")

    def generation_from(self, image: bytes, mask: bytes | None, max_pixels: int) -> GenerationRequest:
        if mask is None:
            raise InvalidRequest("mask is missing: send it as a file of the form, white where to paint", "mask")
        pictures = {"image": base64.b64encode(image).decode(), "mask": base64.b64encode(mask).decode()}
        with fields_named(self.native_names):
            return validated(GenerationRequest, {**self.native_fields(), **pictures}, of_texts=True)


class OpenAIVariationRequest(OpenAIEditRequest):
    """The form of POST /v1/images/variations, but for its file. It knows no prompt; here it may have one."""

    extra_fields: ClassVar[tuple[str, ...]] = (*EXTRA_FIELDS, "strength")
    files: ClassVar[tuple[str, ...]] = ("image",)

    prompt: str = Field(default="", max_length=32_000)

    def native_fields(self) -> dict[str, Any]:
        return {"strength": _VARIATION_STRENGTH, **super().native_fields()}


class FormBody(RequestBody):
    """Reads a form of texts and files, or a JSON object whose `images` and `mask` are data URLs.

    Args:
        model: What its texts have to be; its `files` are those that the form may have.
        example: Texts that the default service takes, beside an image.
    """

    model: type[OpenAIEditRequest]

    def __init__(self, model: type[OpenAIEditRequest], example: Mapping[str, str]) -> None:
        self.model = model
        self._example = example

    @property
    def content(self) -> dict[str, Any]:
        properties = dict.fromkeys(self.model.files, FILE_SCHEMA)
        files = {"type": "object", "properties": properties, "required": list(self.model.needed_files)}
        return {FORM_TYPE: {"schema": {"allOf": [schema_of(self.model), files]}, "example": self._example}}

    async def __call__(self, request: Request) -> Form:
        if media_type(request) == JSON_TYPE:
            return await asyncio.to_thread(form_of_json, await read_json(request), self.model.files)
        return await read_form(request)


def form_of_json(body: object, files: tuple[str, ...]) -> Form:
    """OpenAI's JSON form of an edit as the form that it stands for. Raises InvalidRequest."""
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object", None)
    texts: dict[str, str] = {}
    pictures: dict[str, tuple[bytes, ...]] = {}
    for name, value in body.items():
        field = "image" if name == "images" else name
        if value is None:
            continue
        if field in files:
            values = value if isinstance(value, list) else [value]
            pictures[field] = (*pictures.get(field, ()), *(_picture(name, one) for one in values))
        else:
            texts[name] = value if isinstance(value, str) else json.dumps(value)
    return Form(texts, pictures)


def _picture(name: str, value: object) -> bytes:
    """A picture's file from a data URL, or from OpenAI's object with one. Raises InvalidRequest."""
    text = value.get("image_url") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise InvalidRequest(f"{name} must be a data URL, or an object whose image_url is one", name[:64])
    return decoded(name, text)


def files_asked(form: Form, known: tuple[str, ...]) -> tuple[bytes, bytes | None]:
    """The picture and the mask of a form. Raises InvalidRequest."""
    files: dict[str, bytes] = {}
    for name, data in form.files.items():
        field = name.removesuffix("[]")
        if field not in known:
            raise InvalidRequest(f"unknown file {name[:64]!a}; files: {', '.join(known)}", field[:64])
        field = "mask" if field == "mask_image" else field
        if field in files or len(data) > 1:
            raise InvalidRequest(f"{field} holds several files: send one", field)
        files[field] = data[0]
    if "image" not in files:
        raise InvalidRequest("image is missing: send it as a file of the form", "image")
    return files["image"], files.get("mask")


def fingerprinted(form: Form) -> dict[str, Any]:
    """A form as JSON values, files by their content: the same for the same request."""
    digests = {name: [hashlib.sha256(data).hexdigest() for data in files] for name, files in form.files.items()}
    return {
        "texts": dict(form.texts),
        "files": digests,
        "lists": {name: list(texts) for name, texts in form.lists.items()},
    }


def _is_json(name: str, text: str) -> bool:
    """A text stands for a JSON array or object; prompts and the like never do."""
    field = GenerationRequest.model_fields.get(name)
    return text[:1] in ("{", "[") and field is not None and field.annotation not in (str, str | None)


def _put(body: dict[str, Any], name: str, value: object) -> None:
    """A form's field into a body of objects: `hires[scale]` is the member `scale` of `hires`. Raises InvalidRequest."""
    found = _NAME.fullmatch(name)
    if found is None:
        field = name.partition("[")[0][:64]
        raise InvalidRequest(f"{name[:64]!a} can't be read; write field, field[part] or field[][part]", field)
    field = found[1][:64]
    *objects, last = [found[1], *found[2].removeprefix("[").removesuffix("]").split("][")] if found[2] else [found[1]]
    for part in objects:
        body = body.setdefault(part, {})
        if not isinstance(body, dict):
            raise InvalidRequest(f"{field!a} is sent both as a value and as an object", field)
    if last in body:
        raise InvalidRequest(f"{name[:64]!a} comes twice", field)
    body[last] = value


def _put_list(body: dict[str, Any], name: str, texts: tuple[str, ...]) -> None:
    """A form's list into a body of objects: the n-th `loras[][name]` is the member `name` of the n-th of `loras`.

    The SDKs write a list so, in Python one member of all objects after the other. Raises InvalidRequest.
    """
    found = _LIST_NAME.fullmatch(name)
    field = name.partition("[")[0][:64]
    if found is None:
        raise InvalidRequest(f"{name[:64]!a} can't be read; a list in a form is field[][member], or JSON", field)
    objects = body.setdefault(found[1], [{} for _ in texts])
    if not isinstance(objects, list) or len(objects) != len(texts) or not all(isinstance(one, dict) for one in objects):
        message = f"{name[:64]!a} must come once for each object of the list; send a list of unlike objects as JSON"
        raise InvalidRequest(message, field)
    for item, text in zip(objects, texts, strict=True):
        item[found[2]] = text
