"""Errors as HTTP: with the status of http_status.py's table, in the form that the dialect's clients read.

    native          {"error": {"code", "message", "field"?}}
    OpenAI          {"error": {"message", "type", "param", "code"}}, and x-should-retry, which its SDK obeys
    AUTOMATIC1111   {"error": code, "detail": message, "body": field, "errors": ""}; where images are drawn also
                    {"info": message, "parameters": {}, "images": [the message as a picture]}
    Hugging Face    {"error": message, "error_type": code}

A path's prefix chooses the form, also for an unknown route. Every error is answered so, but never with a traceback or
the text of a foreign exception.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Scope

from deployments.engine.errors import DarkroomError, InvalidRequest, UnknownCheckpoint
from serve_app.api.a1111.error_picture import error_picture
from serve_app.api.http_status import status_of
from serve_app.errors import (
    ImagesWithheld,
    MethodNotAllowed,
    PromptRefused,
    QueueFull,
    TooManyRequests,
    Unauthenticated,
    UnknownRoute,
    UnreadableRequest,
)
from serve_app.observability.metrics import FrontMetrics
from serve_app.schemas.validation import invalid

INTERNAL = DarkroomError("something went wrong here; the service's log says what, by the request's id")

# the statuses that are worth the same request again; OpenAI's SDK would also repeat what a job died of
WORTH_RETRYING = (408, 429, 503)


@contextmanager
def fields_named(names: Mapping[str, str]) -> Iterator[None]:
    """Errors about a field of the native request leave the block under the dialect's name for it."""
    try:
        yield
    except InvalidRequest as error:
        field = error.field or ""
        # a part of an object that has no name of its own is the object's
        known = next((part for part in (field, field.partition(".")[0]) if part in names), None)
        if known is None:
            raise
        message = re.sub(rf"(?<![\w.]){re.escape(known)}(?![\w])", names[known], error.message)
        raise type(error)(message, names[known]) from None


def error_body(error: DarkroomError) -> dict[str, Any]:
    """The native form."""
    body: dict[str, Any] = {"code": error.code, "message": str(error)}
    if error.field:
        body["field"] = error.field
    return {"error": body}


def openai_error_body(error: DarkroomError, status: int) -> dict[str, Any]:
    """OpenAI's form, with its own words for what its clients look for."""
    kind, code = "invalid_request_error" if status < 500 else "server_error", error.code
    if isinstance(error, (PromptRefused, ImagesWithheld)):
        kind, code = "image_generation_user_error", "moderation_blocked"
    elif isinstance(error, UnknownCheckpoint):
        code = "model_not_found"
    elif isinstance(error, Unauthenticated):
        code = "invalid_api_key"
    elif isinstance(error, TooManyRequests):
        kind, code = "rate_limit_error", "rate_limit_exceeded"
    return {"error": {"message": str(error), "type": kind, "param": error.field, "code": code}}


def error_response(error: DarkroomError, scope: Scope, retry_after_s: int = 5) -> JSONResponse:
    """An error as the response to `scope`'s request; 429 and 503 have Retry-After, 401 has WWW-Authenticate."""
    status = status_of(error)
    if status >= 500 and type(error) is DarkroomError:
        error = INTERNAL  # its message may be about anything
    response = _form_of(_path_of(scope), scope["method"]).response(error, status)
    if isinstance(error, (QueueFull, TooManyRequests)) and error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    elif status == 503:
        response.headers["Retry-After"] = str(retry_after_s)
    elif status == 401:
        response.headers.setdefault("WWW-Authenticate", 'Bearer realm="Darkroom"')
    return response


def add_error_handlers(app: FastAPI, metrics: FrontMetrics, retry_after_s: Callable[[], int]) -> None:
    """Make `app` answer every error in the path's form; `retry_after_s`: when a refused client may try again."""

    async def answered(request: Request, error: Exception) -> JSONResponse:
        refusal = _as_ours(error, request)
        request.state.error_code = refusal.code  # for the audit log
        metrics.refused(refusal.code)
        response = error_response(refusal, request.scope, retry_after_s())
        if isinstance(refusal, MethodNotAllowed):
            response.headers["Allow"] = ", ".join(_methods_of(app, request.scope))
        return response

    for kind in (DarkroomError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, answered)


def _as_ours(error: Exception, request: Request) -> DarkroomError:
    match error:
        case DarkroomError():
            return error
        case RequestValidationError():  # of a path, a query or a header
            details = error.errors()[0]
            return invalid({**details, "loc": details["loc"][1:]})
        case HTTPException(status_code=404):
            return unknown_route(request.url.path)
        case HTTPException(status_code=405):
            method = ascii(request.method)[:32]
            return MethodNotAllowed(f"{ascii(request.url.path)[:128]} doesn't know the method {method}")
        case HTTPException():
            return UnreadableRequest(f"the request can't be served ({error.status_code})")
        case _:
            raise error


def unknown_route(path: str) -> UnknownRoute:
    """No route of that path."""
    return UnknownRoute(f"no route {ascii(path)[:128]}; GET /docs shows what there is")


def _path_of(scope: Scope) -> str:
    """The path below the application's own root; a mount makes its own path the scope's root_path."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("app_root_path", scope.get("root_path", "")))


def _methods_of(app: FastAPI, scope: Scope) -> list[str]:
    """All methods of a path; Starlette names those of the first route alone."""
    path = _path_of(scope)
    routes = [route for route in iter_route_contexts(app.routes) if route.path_regex.match(path)]
    return sorted({method for route in routes for method in route.methods or {"GET"}})


class _Form(NamedTuple):
    """A dialect's form of errors: its schema's name in the OpenAPI document, and the response."""

    schema: str
    response: Callable[[DarkroomError, int], JSONResponse]


def _native(error: DarkroomError, status: int) -> JSONResponse:
    return JSONResponse(error_body(error), status)


def openai_status(error: DarkroomError) -> int:
    """The HTTP status that OpenAI's clients are answered with."""
    if isinstance(error, UnknownCheckpoint):
        return 404
    if isinstance(error, (InvalidRequest, ImagesWithheld)):
        return 400  # what OpenAI answers, so that the SDK raises BadRequestError
    return status_of(error)


def _openai(error: DarkroomError, _status: int) -> JSONResponse:
    status = openai_status(error)
    headers = {"x-should-retry": "true" if status in WORTH_RETRYING else "false"}
    return JSONResponse(openai_error_body(error, status), status, headers)


def _a1111(error: DarkroomError, status: int) -> JSONResponse:
    body = {"error": error.code, "detail": str(error), "body": error.field or "", "errors": ""}
    # its clients know names and passwords; a browser that sees this asks for them
    headers = {"WWW-Authenticate": 'Basic realm="Darkroom", charset="UTF-8"'} if status == 401 else None
    return JSONResponse(body, status, headers)


def _a1111_drawing(error: DarkroomError, status: int) -> JSONResponse:
    """With what a client looks for in an answer that has images: the error as one, and as the info."""
    response = _a1111(error, status)
    if status in _NEEDS_NO_PICTURE:
        return response
    message = str(error)
    body = {"error": error.code, "detail": message, "body": error.field or "", "errors": ""}
    further = {"info": message, "parameters": {}, "images": [error_picture(message)]}
    return JSONResponse({**body, **further}, status)


def _hugging_face(error: DarkroomError, status: int) -> JSONResponse:
    message = str(error)
    if error.field is not None and error.field not in message:  # there is no other place for its name
        message = f"{error.field}: {message}"
    return JSONResponse({"error": message, "error_type": error.code}, status)


# answered often, or to nobody that is known: nothing is drawn for these
_NEEDS_NO_PICTURE = (401, 403, 408, 413, 429, 503)

_FORMS = {
    "/sdapi/v1/txt2img": _Form("A1111DrawingError", _a1111_drawing),
    "/sdapi/v1/img2img": _Form("A1111DrawingError", _a1111_drawing),
    "/v1/": _Form("OpenAIError", _openai),
    "/openai/": _Form("OpenAIError", _openai),
    **dict.fromkeys(("/images/generations", "/images/edits", "/images/variations"), _Form("OpenAIError", _openai)),
    "/sdapi/": _Form("A1111Error", _a1111),
    "/internal/": _Form("A1111Error", _a1111),
    "/controlnet/": _Form("A1111Error", _a1111),
    "/models/": _Form("HuggingFaceError", _hugging_face),
    "/predict": _Form("HuggingFaceError", _hugging_face),
    "": _Form("Error", _native),
}


# Hugging Face's client posts to the address that it is given, whatever that is
_BASES = ("/", "/v1")


def _form_of(path: str, method: str = "") -> _Form:
    if path in _BASES and method == "POST":
        return _FORMS["/predict"]
    return next(form for prefix, form in _FORMS.items() if path.startswith(prefix))


def error_schema(path: str) -> str:
    """The name of the form in which a path's errors are answered."""
    return _form_of(path).schema


def _object(required: tuple[str, ...], optional: tuple[str, ...] = (), **nested: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {name: {"type": "string"} for name in (*required, *optional)} | nested
    return {"type": "object", "properties": fields, "required": [*required, *nested], "additionalProperties": False}


# the forms for the OpenAPI document
ERROR_SCHEMAS: dict[str, Any] = {
    "Error": _object((), error=_object(("code", "message"), ("field",))),
    "OpenAIError": _object((), error=_object(("message", "type", "code"), param={"type": ["string", "null"]})),
    "A1111Error": _object(("error", "detail", "body", "errors")),
    "A1111DrawingError": {
        **_object(("error", "detail", "body", "errors"), ("info",)),
        "additionalProperties": {
            "description": "Also parameters and images: the message as a picture, for clients that look there alone.",
        },
    },
    "HuggingFaceError": _object(("error", "error_type")),
}
