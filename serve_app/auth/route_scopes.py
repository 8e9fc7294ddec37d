"""What each route requires of its caller, as a FastAPI dependency.

    async def result(caller: Reader, job_id: str) -> JobView: ...

It is each route's first dependency, so that nothing of a refused request's body is read. An application with a route
that declares none isn't built.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.requests import Request

from serve_app.auth.caller import Caller
from serve_app.auth.key_file import Scope


@dataclass(frozen=True, slots=True)
class Access:
    """What a route requires if there are keys; the dependency's value is the caller.

    Attributes:
        scope: that the key must have; None for a public route.
        draws: whether it draws or enlarges images, which has a rate of its own.
        takes_images: whether its body may hold images, and so be longer.
        linked: whether an image's signed address is accepted in place of a key.
    """

    scope: Scope | None
    draws: bool = False
    takes_images: bool = False
    linked: bool = False

    async def __call__(self, request: Request) -> Caller:
        if self.takes_images:
            request.state.max_body_bytes = request.state.limits.max_image_body_bytes
        caller: Caller = await request.state.guard.admit(request, self)
        return caller


# files and a document that tell nothing of anybody; they aren't FastAPI's routes, so they can have no dependency
OPEN = frozenset({"/docs-files", "/openapi.json"})

PUBLIC = Access(None)
READ = Access(Scope.READ)

# the caller of a route that asks for this
Anybody = Annotated[Caller, Depends(PUBLIC)]
Reader = Annotated[Caller, Depends(READ)]
ReaderOfImage = Annotated[Caller, Depends(Access(Scope.READ, takes_images=True))]
LinkedReader = Annotated[Caller, Depends(Access(Scope.READ, linked=True))]
Changer = Annotated[Caller, Depends(Access(Scope.GENERATE))]
ChangerFromImage = Annotated[Caller, Depends(Access(Scope.GENERATE, takes_images=True))]
Drawer = Annotated[Caller, Depends(Access(Scope.GENERATE, draws=True))]
DrawerFromImage = Annotated[Caller, Depends(Access(Scope.GENERATE, draws=True, takes_images=True))]
Admin = Annotated[Caller, Depends(Access(Scope.ADMIN))]


def routes_of(app: FastAPI) -> Mapping[tuple[str, str], Access | None]:
    """Method and path of each route -> its first dependency; None where that is no Access."""
    routes: dict[tuple[str, str], Access | None] = {}
    for route in iter_route_contexts(app.routes):
        first = None
        if isinstance(route.original_route, APIRoute) and route.dependant.dependencies:
            first = route.dependant.dependencies[0].call
        for method in (route.methods or {"GET"}) - {"HEAD"}:
            routes[method, str(route.path)] = first if isinstance(first, Access) else None
    return routes


def check_routes(app: FastAPI) -> None:
    """Raise RuntimeError if a route would be open to all because it declares no Access."""
    for (method, path), access in routes_of(app).items():
        if access is None and path not in OPEN:
            raise RuntimeError(f"{method} {path} doesn't say who may ask for it: its first dependency isn't an Access")
