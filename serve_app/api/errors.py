"""Errors as HTTP: with the status of serve_app/errors.py's table, in the form of the dialect that was spoken to.

error_forms.py has the forms. Whatever goes wrong is answered so; a trace, or the text of somebody else's exception,
never is.
"""

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Scope

from deployments.engine.errors import DarkroomError, InvalidRequest
from serve_app.api.error_formats import form_of
from serve_app.api.service import Service
from serve_app.errors import MethodNotAllowed, QueueFull, TooManyRequests, UnknownRoute, UnreadableRequest, status_of
from serve_app.observability.logs import get_logger

log = get_logger(__name__)

INTERNAL = DarkroomError("something went wrong here; the service's log says what, by the request's id")


def error_response(error: DarkroomError, scope: Scope, retry_after_s: int | None = None) -> JSONResponse:
    """An error as the response to `scope`'s request; 429 and 503 carry Retry-After, 401 how to say who one is."""
    status = status_of(error)
    if status >= 500 and type(error) is DarkroomError:
        error = INTERNAL  # its message may be about anything
    response = form_of(scope)(error, status)
    if isinstance(error, QueueFull) and error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    elif status == 503:
        response.headers["Retry-After"] = str(retry_after_s or 5)
    elif isinstance(error, TooManyRequests):
        response.headers["Retry-After"] = str(error.retry_after_s)
    elif status == 401:
        response.headers.setdefault("WWW-Authenticate", 'Bearer realm="Darkroom"')
    return response


def add_error_handlers(app: FastAPI, service: Service) -> None:
    """Make `app` answer every error in our form."""

    def refused(request: Request, error: DarkroomError) -> JSONResponse:
        service.metrics.refused(error.code)
        return error_response(error, request.scope, service.retry_after_s())

    async def ours(request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, DarkroomError):
            raise TypeError(f"no {type(error).__name__} is expected here")
        return refused(request, error)

    async def of_routing(request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, HTTPException):
            raise TypeError(f"no {type(error).__name__} is expected here")
        response = refused(request, _routing_error(request, error))
        if error.headers and "allow" in {name.lower() for name in error.headers}:
            response.headers["Allow"] = {name.lower(): value for name, value in error.headers.items()}["allow"]
        return response

    async def of_parameters(request: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, RequestValidationError):
            raise TypeError(f"no {type(error).__name__} is expected here")
        first = error.errors()[0]
        field = str(first["loc"][-1])
        shown = ascii(first.get("input"))[:64]
        return refused(request, InvalidRequest(f"{field} is {shown}: {first['msg']}", field))

    app.add_exception_handler(DarkroomError, ours)
    app.add_exception_handler(HTTPException, of_routing)
    app.add_exception_handler(RequestValidationError, of_parameters)


def unknown_route(path: str) -> UnknownRoute:
    """No route of that path."""
    return UnknownRoute(f"no route {ascii(path)[:128]}; GET /docs shows what there is")


def unknown_method(path: str, method: str) -> MethodNotAllowed:
    """The path knows other methods."""
    return MethodNotAllowed(f"{ascii(path)[:128]} doesn't know the method {ascii(method)[:32]}")


def _routing_error(request: Request, error: HTTPException) -> DarkroomError:
    if error.status_code == 404:
        return unknown_route(request.url.path)
    if error.status_code == 405:
        return unknown_method(request.url.path, request.method)
    return UnreadableRequest(f"the request can't be served ({error.status_code})")
