"""How an error looks in each dialect: the same facts, in the shape that its clients read.

    native          {"error": {"code", "message", "field"?}}
    OpenAI          {"error": {"message", "type", "param", "code"}}, and x-should-retry, which its SDK obeys
    AUTOMATIC1111   {"error": code, "detail": message, "body": field, "errors": ""}
    Hugging Face    {"error": message, "error_type": code}

A path's prefix says whose clients it is for, so that an unknown route is refused in their form too.
"""

from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Scope

from deployments.engine.errors import DarkroomError, InvalidRequest, UnknownCheckpoint
from serve_app.errors import ImagesWithheld, PromptRefused, TooManyRequests, Unauthenticated

ErrorForm = Callable[[DarkroomError, int], JSONResponse]

# of the prompt, and of the images
_MODERATION = (PromptRefused, ImagesWithheld)

# the statuses that are worth the same request again; OpenAI's SDK would also repeat what a job died of
WORTH_RETRYING = (408, 429, 503)


def error_body(error: DarkroomError) -> dict[str, Any]:
    """The native form."""
    body: dict[str, Any] = {"code": error.code, "message": str(error)}
    if error.field:
        body["field"] = error.field
    return {"error": body}


def openai_error_body(error: DarkroomError, status: int) -> dict[str, Any]:
    """OpenAI's form, with its own words for what its clients look for."""
    kind, code = "invalid_request_error" if status < 500 else "server_error", error.code
    if isinstance(error, _MODERATION):
        kind, code = "image_generation_user_error", "moderation_blocked"
    elif isinstance(error, UnknownCheckpoint):
        code = "model_not_found"
    elif isinstance(error, Unauthenticated):
        code = "invalid_api_key"
    elif isinstance(error, TooManyRequests):
        kind, code = "rate_limit_error", "rate_limit_exceeded"
    return {"error": {"message": str(error), "type": kind, "param": error.field, "code": code}}


def form_of(scope: Scope) -> ErrorForm:
    """The form for a request's path."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return next((form for prefix, form in _FORMS if path.startswith(prefix)), _native)


def _native(error: DarkroomError, status: int) -> JSONResponse:
    return JSONResponse(error_body(error), status)


def _openai(error: DarkroomError, status: int) -> JSONResponse:
    if isinstance(error, UnknownCheckpoint):
        status = 404
    elif isinstance(error, (InvalidRequest, ImagesWithheld)):
        status = 400  # what OpenAI answers, so that the SDK raises BadRequestError
    headers = {"x-should-retry": "true" if status in WORTH_RETRYING else "false"}
    return JSONResponse(openai_error_body(error, status), status, headers)


def _a1111(error: DarkroomError, status: int) -> JSONResponse:
    body = {"error": error.code, "detail": str(error), "body": error.field or "", "errors": ""}
    # its clients know names and passwords; a browser that sees this asks for them
    headers = {"WWW-Authenticate": 'Basic realm="Darkroom", charset="UTF-8"'} if status == 401 else None
    return JSONResponse(body, status, headers)


def _hugging_face(error: DarkroomError, status: int) -> JSONResponse:
    message = str(error)
    if error.field is not None and error.field not in message:  # there is no other place for its name
        message = f"{error.field}: {message}"
    return JSONResponse({"error": message, "error_type": error.code}, status)


_FORMS: tuple[tuple[str, ErrorForm], ...] = (
    ("/v1/", _openai),
    ("/sdapi/", _a1111),
    ("/internal/", _a1111),
    ("/models/", _hugging_face),
    ("/predict", _hugging_face),
)


def _object(required: tuple[str, ...], optional: tuple[str, ...] = (), **nested: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {name: {"type": "string"} for name in (*required, *optional)} | nested
    return {"type": "object", "properties": fields, "required": [*required, *nested], "additionalProperties": False}


# the forms for the OpenAPI document
ERROR_SCHEMAS: dict[str, Any] = {
    "Error": _object((), error=_object(("code", "message"), ("field",))),
    "OpenAIError": _object((), error=_object(("message", "type", "code"), param={"type": ["string", "null"]})),
    "A1111Error": _object(("error", "detail", "body", "errors")),
    "HuggingFaceError": _object(("error", "error_type")),
}
_SCHEMAS: dict[ErrorForm, str] = {
    _native: "Error",
    _openai: "OpenAIError",
    _a1111: "A1111Error",
    _hugging_face: "HuggingFaceError",
}


def schema_for(path: str) -> str:
    """The name of the form in which a path's errors are answered."""
    return _SCHEMAS[form_of({"path": path})]
