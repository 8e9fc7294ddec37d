"""The routes of the real application, with what each asks of its caller."""

from collections.abc import Mapping

from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.routing import Mount

from serve_app.auth.route_scopes import Access

# files and a document that tell nothing of anybody; they aren't FastAPI's routes, so they can have no dependency
OPEN = {("GET", "/docs-files"), ("GET", "/openapi.json")}


def routes_of(app: FastAPI) -> Mapping[tuple[str, str], Access | None]:
    """Method and path of each route -> its first dependency; None where that is another one."""
    found: dict[tuple[str, str], Access | None] = {}
    for route in iter_route_contexts(app.routes):
        first = None
        if isinstance(route.original_route, APIRoute) and route.dependant.dependencies:
            first = route.dependant.dependencies[0].call
        assert route.methods or isinstance(route.original_route, Mount), f"{route.path} has no methods: a WebSocket?"
        for method in (route.methods or {"GET"}) - {"HEAD"}:
            found[method, str(route.path)] = first if isinstance(first, Access) else None
    return found
