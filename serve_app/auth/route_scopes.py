"""What each route asks of its caller, as a FastAPI dependency.

    async def result(caller: Reader, job_id: str) -> JobView: ...

It is each route's first dependency, so that nothing of a refused request's body is read. An application of which a
route declares none isn't built.
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
    """What a route asks for where there are keys; the dependency's value is the caller.

    Attributes:
        scope: That a key needs; None asks for no key.
        draws: It asks for images, or for work on them, which have a rate of their own.
        takes_images: Its body may hold images, so it may be longer.
        linked: An image's signed address is as good as a key.
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
Drawer = Annotated[Caller, Depends(Access(Scope.GENERATE, draws=True))]
DrawerFromImage = Annotated[Caller, Depends(Access(Scope.GENERATE, draws=True, takes_images=True))]


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
    """Raise RuntimeError where a route would be served to everybody because nothing says who may ask for it."""
    for (method, path), access in routes_of(app).items():
        if access is None and path not in OPEN:
            raise RuntimeError(f"{method} {path} doesn't say who may ask for it: its first dependency isn't an Access")
