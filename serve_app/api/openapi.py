"""The OpenAPI document: FastAPI's own, with the bodies that dependencies read (bodies.py) and our forms of errors."""

from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic.json_schema import models_json_schema

from serve_app.api.bodies import RequestBody
from serve_app.api.errors import ERROR_SCHEMAS, error_schema
from serve_app.auth.route_scopes import Access

_REFERENCE = "#/components/schemas/{model}"

# statuses of errors as the document groups them -> what they mean
_ERRORS = {"4XX": "The request was refused.", "5XX": "It can't be served, or its job failed."}


# the places of an API key in a request
_KEY_SCHEMES: dict[str, Any] = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "The API key."},
    "basic": {"type": "http", "scheme": "basic", "description": "The API key as password, any user."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The API key."},
}


def complete_openapi(app: FastAPI, *, keyed: bool) -> None:
    """Complete the document that `app` makes of itself; `keyed` if its calls need API keys."""
    generated = app.openapi

    def openapi() -> dict[str, Any]:
        document = generated()
        schemas, paths = document["components"]["schemas"], document["paths"]
        dependencies = _dependencies(app)
        bodies = {call: one for call, calls in dependencies.items() for one in calls if isinstance(one, RequestBody)}
        _, models = models_json_schema(
            [(body.model, "validation") for body in bodies.values()], ref_template=_REFERENCE
        )
        schemas |= models["$defs"] | ERROR_SCHEMAS
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        for (path, method), body in bodies.items():
            paths[path][method]["requestBody"] = {"required": True, "content": body.content}
        document["components"]["securitySchemes"] = _KEY_SCHEMES
        for (path, method), calls in dependencies.items():
            access = next(one for one in calls if isinstance(one, Access))
            if access.scope is not None:
                # {}: it also works without
                without: list[dict[str, Any]] = [{}] if not keyed or access.linked else []
                paths[path][method]["security"] = [*without, *({name: []} for name in _KEY_SCHEMES)]
        for path, calls in paths.items():
            form = {"application/json": {"schema": {"$ref": _REFERENCE.format(model=error_schema(path))}}}
            for call in calls.values():
                call["responses"].pop("422", None)
                call["responses"] |= {
                    status: {"description": meaning, "content": form} for status, meaning in _ERRORS.items()
                }
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _dependencies(app: FastAPI) -> dict[tuple[str, str], list[Any]]:
    """What each route of the document depends on, by path and method."""
    return {
        (str(route.path_format), method.lower()): [dependency.call for dependency in route.dependant.dependencies]
        for route in iter_route_contexts(app.routes)
        if isinstance(route.original_route, APIRoute) and route.original_route.include_in_schema
        for method in route.methods or ()
    }
