"""Alive and ready: two different questions, for a process's keeper and for a load balancer."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from deployments.engine.errors import DarkroomError
from serve_app.auth.caller import caller_of
from serve_app.auth.keys import Scope
from serve_app.image_store.store import ImageStore
from serve_app.jobs.db.store import JobStore


class StageAnswer(Protocol):
    """What is known of a stage; readiness.py finds it out."""

    @property
    def state(self) -> str: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def replicas(self) -> int: ...
    @property
    def description(self) -> Any: ...
    @property
    def serves(self) -> bool: ...


Stages = Callable[[], Awaitable[Mapping[str, StageAnswer]]]


_JSON: dict[str, Any] = {"application/json": {}}


def health_routes(store: JobStore, images: ImageStore, stages: Stages) -> APIRouter:
    """GET /health and GET /ready."""
    routes = APIRouter()

    @routes.get("/health")
    async def health() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @routes.get(
        "/ready", responses={503: {"description": "Something can't serve yet; the body says what.", "content": _JSON}}
    )
    async def ready(request: Request) -> JSONResponse:
        """200 when a request would be served; before that 503 with each stage's state and reason.

        Where there are keys, nobody without one learns more than the states.
        """
        known = caller_of(request).may(Scope.READ)
        answers = await stages()
        body: dict[str, Any] = {"ready": True, "stages": {}}
        for name, answer in answers.items():
            body["ready"] &= answer.serves
            body["stages"][name] = {"state": answer.state}
            if known:
                body["stages"][name] |= {
                    "reason": answer.reason,
                    "replicas": answer.replicas,
                    "replica": None if answer.description is None else asdict(answer.description),
                }
        told: dict[str, Any]
        try:
            depth = await store.depth()
        except DarkroomError as error:
            body |= {"ready": False, "jobs": {"state": "failed"}}
            told = {"reason": str(error)}
        else:
            body["jobs"] = {"state": "ready"}
            told = {"queued": depth.queued, "running": depth.running}
        if known:
            body["jobs"] |= told
        try:
            await images.check()
        except DarkroomError as error:
            body |= {"ready": False, "images": {"state": "failed"}}
            if known:
                body["images"]["reason"] = str(error)
        else:
            body["images"] = {"state": "ready"}
        headers = {"Cache-Control": "no-store"}
        if not body["ready"]:
            headers["Retry-After"] = "1"
        return JSONResponse(body, 200 if body["ready"] else 503, headers)

    return routes
