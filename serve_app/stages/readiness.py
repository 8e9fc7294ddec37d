"""Which stages can serve, and why the others can't.

Serve's controller knows the wanted state of each deployment; a replica's own answer proves that it lives. Both are
asked with a bounded wait, and once for all requests within a moment.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import DeploymentStatusOverview

from deployments.engine.errors import DarkroomError
from deployments.replica import StageDescription
from serve_app.stages.client import answer, unwrapped

_ANSWER_TIMEOUT_S = 3.0
_FRESH_S = 0.5

# Serve's messages hold whole tracebacks
_REASON_CHARS = 500


@dataclass(frozen=True, slots=True)
class StageState:
    """The state of a stage; "asleep" is scaled to zero: the next request wakes it."""

    state: Literal["ready", "asleep", "starting", "failed", "unreachable"]
    reason: str | None
    replicas: int
    description: StageDescription | None

    @property
    def serves(self) -> bool:
        """Whether a request would be served."""
        return self.state in ("ready", "asleep")


class Readiness:
    """The state of each stage of one application; must be created in one of its replicas."""

    def __init__(self, handles: Mapping[str, DeploymentHandle[Any]]) -> None:
        self._handles = handles
        self._app_name = serve.get_replica_context().app_name
        self._asking = asyncio.Lock()
        self._known: dict[str, StageState] = {}
        self._asked_at = float("-inf")

    async def stages(self) -> dict[str, StageState]:
        """The stages' states by deployment name."""
        async with self._asking:
            if time.monotonic() - self._asked_at > _FRESH_S:
                statuses = await self._statuses()
                states = await asyncio.gather(*(self._state(handle, statuses) for handle in self._handles.values()))
                names = [handle.deployment_name for handle in self._handles.values()]
                self._known = dict(zip(names, states, strict=True))
                self._asked_at = time.monotonic()
            return self._known

    async def _statuses(self) -> Mapping[str, DeploymentStatusOverview] | None:
        """The controller's states of the application's deployments; None if it doesn't answer."""
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                status = await asyncio.to_thread(serve.status)
        except (TimeoutError, RayError, RayServeException):
            return None
        application = status.applications.get(self._app_name)
        return {} if application is None else application.deployments

    async def _state(
        self, handle: DeploymentHandle[Any], statuses: Mapping[str, DeploymentStatusOverview] | None
    ) -> StageState:
        if statuses is None:  # the controller is away; the replicas don't need it
            known = self._known.get(handle.deployment_name)
            if known is None:
                return StageState("unreachable", "Serve's controller doesn't answer", 0, None)
            # a call of a stage that sleeps would wake it, and with it a GPU node
            return known if known.state == "asleep" else await self._answered(handle, known.replicas)
        status = statuses.get(handle.deployment_name)
        if status is None:
            return StageState("starting", "not deployed yet", 0, None)
        # both are enums of strings, and Serve fills in plain strings here and there
        running = dict[str, int](status.replica_states).get("RUNNING", 0)
        if running:
            return await self._answered(handle, running)
        if status.status == "HEALTHY":
            return StageState("asleep", None, 0, None)
        failed = status.status in ("DEPLOY_FAILED", "UNHEALTHY")
        message = telling_line(status.message) or "loading its checkpoints"
        return StageState("failed" if failed else "starting", message, 0, None)

    async def _answered(self, handle: DeploymentHandle[Any], replicas: int) -> StageState:
        try:
            description: StageDescription = await answer(handle.describe.remote(), _ANSWER_TIMEOUT_S)
        except TimeoutError:
            return StageState("unreachable", f"no answer within {_ANSWER_TIMEOUT_S:g} s", replicas, None)
        except (DarkroomError, RayError, RayServeException) as error:
            cause = unwrapped(error)
            known = str(cause) if isinstance(cause, DarkroomError) else type(cause).__name__
            return StageState("failed", known[:_REASON_CHARS], replicas, None)
        return StageState("ready", None, replicas, description)


def telling_line(message: str) -> str:
    """The last line of Serve's message, where a traceback has its error; of a warning the line before its advice."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if lines and lines[-1].startswith("This may be caused by"):
        lines.pop()
    return lines[-1][:_REASON_CHARS] if lines else ""
