"""Alive and ready: two different questions, for a process's keeper and for a load balancer."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse

from deployments.engine.errors import DarkroomError
from serve_app.api.service import Service
from serve_app.api.shared import CurrentService, CurrentStageStates
from serve_app.auth.key_file import Scope
from serve_app.auth.route_scopes import PUBLIC, Anybody
from serve_app.provenance.certificates import EXPIRES_SOON_S
from serve_app.provenance.signer import ImageSigner

_JSON: dict[str, Any] = {"application/json": {}}

routes = APIRouter()


@routes.get("/health", dependencies=[Depends(PUBLIC)])
async def health() -> dict[str, str]:
    """The process is alive."""
    return {"status": "ok"}


@routes.get(
    "/ready", responses={503: {"description": "Something can't serve yet; the body says what.", "content": _JSON}}
)
async def ready(caller: Anybody, service: CurrentService, stage_states: CurrentStageStates) -> JSONResponse:
    """200 when a request would be served; before that 503 with each stage's state and reason.

    If there are keys, a client without one sees the states alone.
    """
    known = caller.may(Scope.READ)
    ready = True
    stage_views: dict[str, Any] = {}
    for name, stage in (await stage_states()).items():
        ready &= stage.serves
        stage_views[name] = {"state": stage.state}
        if known:
            stage_views[name] |= {
                "reason": stage.reason,
                "replicas": stage.replicas,
                "replica": None if stage.description is None else asdict(stage.description),
            }
    stores: dict[str, Any] = {}
    checks: dict[str, Callable[[], Awaitable[dict[str, int] | None]]] = {
        "jobs": lambda: _depth(service),
        "images": service.images.check,
    }
    for name, check in checks.items():
        details: Mapping[str, Any] | None
        try:
            state, details = "ready", await check()
        except DarkroomError as error:
            state, details, ready = "failed", {"reason": str(error)}, False
        stores[name] = {"state": state, **((known and details) or {})}
    if service.signer is not None:
        state, reason, serves = _signing(service.signer)
        ready &= serves
        stores["signing"] = {"state": state, **({"reason": reason} if known and reason else {})}
    headers = {"Cache-Control": "no-store"} | ({} if ready else {"Retry-After": "1"})
    return JSONResponse({"ready": ready, "stages": stage_views, **stores}, 200 if ready else 503, headers)


async def _depth(service: Service) -> dict[str, int]:
    depth = await service.store.depth()
    return {"queued": depth.queued, "running": depth.running}


def _signing(signer: ImageSigner) -> tuple[str, str | None, bool]:
    """The state of what signs images, why it isn't ready, and whether images are drawn all the same."""
    left_s = signer.seconds_left()
    if left_s <= 0:
        return "failed", f"the certificate expired on {signer.expires:%Y-%m-%d}", signer.settings.on_failure != "fail"
    if left_s < EXPIRES_SOON_S:
        return "expires soon", f"the certificate expires on {signer.expires:%Y-%m-%d}", True
    return "ready", None, True
