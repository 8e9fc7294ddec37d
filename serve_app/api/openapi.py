"""The OpenAPI document: FastAPI's own, with the bodies that dependencies read (bodies.py) and our forms of errors."""

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic.json_schema import models_json_schema

from serve_app.api.bodies import RequestBody
from serve_app.api.errors import ERROR_SCHEMAS, error_schema

_REFERENCE = "#/components/schemas/{model}"

# statuses of errors as the document groups them -> what they mean
_ERRORS = {"4XX": "The request was refused.", "5XX": "It can't be served, or its job failed."}


def complete_openapi(app: FastAPI) -> None:
    """Complete the document that `app` makes of itself."""
    generated = app.openapi

    def openapi() -> dict[str, Any]:
        document = generated()
        schemas, paths = document["components"]["schemas"], document["paths"]
        bodies = _bodies(app)
        _, models = models_json_schema(
            [(body.model, "validation") for body in bodies.values()], ref_template=_REFERENCE
        )
        schemas |= models["$defs"] | ERROR_SCHEMAS
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for (path, method), body in bodies.items():
            paths[path][method]["requestBody"] = {"required": True, "content": body.content}
        for path, calls in paths.items():
            form = {"application/json": {"schema": {"$ref": _REFERENCE.format(model=error_schema(path))}}}
            for call in calls.values():
                call["responses"].pop("422", None)
                call["responses"] |= {
                    status: {"description": meaning, "content": form} for status, meaning in _ERRORS.items()
                }
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _bodies(app: FastAPI) -> dict[tuple[str, str], RequestBody]:
    """The bodies that routes read, by path and method."""
    return {
        (str(route.path_format), method.lower()): dependency.call
        for route in iter_route_contexts(app.routes)
        if isinstance(route.original_route, APIRoute)
        for dependency in route.dependant.dependencies
        if isinstance(dependency.call, RequestBody)
        for method in route.methods or ()
    }
