"""What each route asks of its caller, as a FastAPI dependency.

    async def result(caller: Reader, job_id: str) -> JobView: ...

It is each route's first dependency, so that nothing of a refused request's body is read (a test walks all routes).
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
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
