"""Every route of the real application declares what it asks of its caller, before anything else."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.staticfiles import StaticFiles

from serve_app.api import app as application
from serve_app.api.app import build_application
from serve_app.auth.key_file import Scope
from serve_app.auth.route_scopes import PUBLIC, READ, check_routes, routes_of
from tests.serve_app.front import Front


async def answer() -> str:
    return "anything"


async def test_every_route_says_first_who_may_ask(running: Front) -> None:
    undeclared = {route for route, access in routes_of(running.app).items() if access is None}
    assert undeclared == {("GET", "/docs-files"), ("GET", "/openapi.json")}


@pytest.mark.parametrize(
    "add",
    [
        lambda app: app.get("/new")(answer),
        lambda app: app.get("/new", dependencies=[Depends(answer), Depends(READ)])(answer),
        lambda app: app.add_route("/new", answer),
        lambda app: app.websocket("/new")(answer),
        lambda app: app.mount("/new", StaticFiles(packages=[("fastapi_offline", "static")])),
    ],
    ids=["nothing", "another dependency first", "Starlette's route", "a WebSocket", "a mount"],
)
async def test_a_route_that_doesn_t_say_who_may_ask_is_refused(add: Callable[[FastAPI], object]) -> None:
    app = FastAPI(docs_url=None, redoc_url=None)
    app.get("/old", dependencies=[Depends(READ), Depends(answer)])(answer)
    check_routes(app)
    add(app)
    with pytest.raises(RuntimeError, match="GET /new doesn't say who may ask for it"):
        check_routes(app)


async def test_no_application_with_a_route_for_everybody(running: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_stages() -> dict[str, Any]:
        return {}

    mistake = APIRouter()
    mistake.post("/new")(answer)
    monkeypatch.setattr(application, "ROUTERS", (*application.ROUTERS, mistake))
    with pytest.raises(RuntimeError, match="POST /new doesn't say who may ask for it"):
        build_application(running.service, no_stages, lifespan=lambda _: nullcontext(), adds_request_id=True)


async def test_what_is_public_tells_nothing_of_anybody(running: Front) -> None:
    public = {path for (_, path), access in routes_of(running.app).items() if access == PUBLIC}
    assert public == {"/", "/ui/{name}", "/health", "/ready", "/docs"}


async def test_whatever_changes_something_needs_more_than_reading(running: Front) -> None:
    harmless = {
        "/verify",
        "/sdapi/v1/png-info",
        "/sdapi/v1/refresh-checkpoints",
        "/sdapi/v1/refresh-loras",
        "/sdapi/v1/refresh-vae",
        "/sdapi/v1/refresh-embeddings",
        "/sdapi/v1/unload-checkpoint",
        "/sdapi/v1/reload-checkpoint",
        "/internal/progress",
    }
    for (method, path), access in routes_of(running.app).items():
        changing = access is None or access.scope in (Scope.GENERATE, Scope.ADMIN)
        assert changing or method == "GET" or path in harmless, path


async def test_models_are_changed_by_admins_alone(running: Front) -> None:
    for (_, path), access in routes_of(running.app).items():
        assert (access is not None and access.scope is Scope.ADMIN) is path.startswith("/admin/"), path


async def test_whatever_draws_has_a_rate_of_its_own(running: Front) -> None:
    drawing = {path for (_, path), access in routes_of(running.app).items() if access is not None and access.draws}
    assert drawing == {
        "/generate",
        "/upscale",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/images/variations",
        "/v1/images/inpainting",
        "/v1/images/upscale",
        "/images/generations",
        "/images/edits",
        "/images/variations",
        "/openai/deployments/{model}/images/generations",
        "/openai/deployments/{model}/images/edits",
        "/sdapi/v1/txt2img",
        "/sdapi/v1/img2img",
        "/sdapi/v1/extra-single-image",
        "/sdapi/v1/extra-batch-images",
        "/models/{model_id:path}",
        "/predict",
        "/v1",
        "/",
    }


async def test_bodies_without_images_have_the_smaller_bound(running: Front) -> None:
    larger = {
        path for (_, path), access in routes_of(running.app).items() if access is not None and access.takes_images
    }
    assert "/v1/images/generations" not in larger
    assert {"/generate", "/sdapi/v1/txt2img", "/sdapi/v1/png-info", "/predict"} <= larger


async def test_other_spellings_of_a_path_are_no_route(running: Front) -> None:
    for path in ("/ui/", "/ui/a/b", "/result/a/b", "http://darkroom//jobs", "/jobs/", "/Jobs"):
        assert (await running.http.get(path)).status_code == 404, path


async def test_another_method_is_told_the_path_s_own(running: Front) -> None:
    for method, path, allowed in (
        ("PUT", "/", "GET, POST"),
        ("PUT", "/jobs", "GET"),
        ("PUT", "/sdapi/v1/options", "GET, POST"),
        ("GET", "/models/owner/name", "POST"),
    ):
        answer = await running.http.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed), path
