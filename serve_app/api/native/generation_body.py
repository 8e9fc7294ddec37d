"""The body of POST /generate: JSON, or a form whose part `request` is that JSON and whose files are its pictures."""

import base64
from typing import Any

from starlette.requests import Request

from deployments.engine.errors import InvalidRequest
from serve_app.api.middleware import parse_json, read_json
from serve_app.api.multipart import FORM_TYPE, is_form, read_form
from serve_app.config.settings import LimitsSettings

# the request's fields that may come as files
_PICTURES = ("image", "mask")

_SCHEMA = {"$ref": "#/components/schemas/GenerationRequest"}
GENERATION_CONTENT: dict[str, Any] = {
    "application/json": {"schema": _SCHEMA},
    FORM_TYPE: {
        "schema": {
            "type": "object",
            "properties": {"request": _SCHEMA, **{name: {"type": "string", "format": "binary"} for name in _PICTURES}},
            "required": ["request"],
            "additionalProperties": False,
        },
        "encoding": {"request": {"contentType": "application/json"}},
    },
}


async def read_generation(request: Request, limits: LimitsSettings) -> Any:
    """The JSON value that the body stands for; a file is base64 in it, as in JSON.

    Raises what read_json and read_form raise, and InvalidRequest for a part that a request doesn't have.
    """
    if not is_form(request):
        return await read_json(request, limits)
    form = await read_form(request, limits)
    for name in (*form.texts, *form.files):
        if name not in ("request", *_PICTURES):
            raise InvalidRequest(f"unknown part {name[:64]!a}; parts: request, {', '.join(_PICTURES)}", name[:64])
    # (some clients give every part a file's name)
    written = form.texts["request"].encode() if "request" in form.texts else b"".join(form.files.get("request", ()))
    body = parse_json(written, limits)
    for name in _PICTURES:
        if name in form.texts:
            raise InvalidRequest(f"{name} must be a file, or stand in the request", name)
        files = form.files.get(name, ())
        if not files:
            continue
        if len(files) > 1 or (isinstance(body, dict) and body.get(name) is not None):
            raise InvalidRequest(f"{name} comes twice", name)
        if isinstance(body, dict):
            body[name] = base64.b64encode(files[0]).decode()
    return body
