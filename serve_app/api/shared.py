"""What an application's routes share. They find it through the request: one set of routes serves any application.

async def models(caller: Reader, service: CurrentService) -> ModelList: ...
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, FastAPI, Request

from serve_app.api.a1111.sessions import CallerSessions
from serve_app.api.service import Service
from serve_app.api.sse import OpenStreams
from serve_app.stages.readiness import StageState

StageStates = Callable[[], Awaitable[Mapping[str, StageState]]]


@dataclass(frozen=True, slots=True)
class Shared:
    """The parts of one application.

    Attributes:
        service: that the routes call.
        stage_states: returns each stage's state.
        streams: the event streams of jobs that are open.
        sessions: of AUTOMATIC1111's clients.
    """

    service: Service
    stage_states: StageStates
    streams: OpenStreams
    sessions: CallerSessions = field(default_factory=CallerSessions)

    def give_to(self, app: FastAPI) -> None:
        """Let `app`'s routes find them."""
        app.state.shared = self


def _shared(request: Request) -> Shared:
    shared: Shared = request.app.state.shared
    return shared


# (FastAPI calls what is no coroutine in a thread)
async def _service(request: Request) -> Service:
    return _shared(request).service


async def _stage_states(request: Request) -> StageStates:
    return _shared(request).stage_states


async def _streams(request: Request) -> OpenStreams:
    return _shared(request).streams


async def _sessions(request: Request) -> CallerSessions:
    return _shared(request).sessions


CurrentService = Annotated[Service, Depends(_service)]
CurrentStageStates = Annotated[StageStates, Depends(_stage_states)]
CurrentStreams = Annotated[OpenStreams, Depends(_streams)]
CurrentSessions = Annotated[CallerSessions, Depends(_sessions)]
