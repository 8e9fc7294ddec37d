"""Every route of the real application stands in the table, and nothing else does."""

from collections.abc import AsyncIterator, Iterator

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from starlette.routing import Mount

from serve_app.auth.route_table import GENERATIONS, ROUTES, Access, Found, find_route
from serve_app.config.settings import Settings
from tests.serve_app.front import Front, front, stand_ins


@pytest.fixture
async def running(settings: Settings) -> AsyncIterator[Front]:
    async with front(settings, stand_ins()) as one:
        yield one


def routes_of(app: FastAPI) -> Iterator[tuple[str, str]]:
    for route in iter_route_contexts(app.routes):
        if isinstance(route.original_route, Mount):
            yield "GET", f"{route.path}/{{path:path}}"
            continue
        assert route.methods, f"{route.path} has no methods: a WebSocket?"
        for method in set(route.methods) - {"HEAD"}:  # the door turns HEAD into GET
            yield method, str(route.path)


async def test_the_table_is_the_application_s_routes(running: Front) -> None:
    assert sorted(routes_of(running.app)) == sorted(ROUTES)


async def test_a_route_that_isn_t_in_the_table_doesn_t_exist(running: Front) -> None:
    @running.app.get("/forgotten")
    async def forgotten() -> str:
        return "secret"

    @running.app.delete("/generate")
    async def added() -> str:
        return "secret"

    response = await running.http.get("/forgotten")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_route")
    response = await running.http.delete("/generate")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


def test_what_is_public_tells_nothing_of_anybody() -> None:
    public = {path for (_, path), access in ROUTES.items() if access is Access.PUBLIC}
    assert public == {
        "/",
        "/ui/{name}",
        "/health",
        "/ready",
        "/docs",
        "/docs-files/{path:path}",
        "/openapi.json",
    }


def test_whatever_changes_something_needs_more_than_reading() -> None:
    harmless = {"/sdapi/v1/png-info", "/sdapi/v1/refresh-checkpoints", "/sdapi/v1/refresh-loras", "/internal/progress"}
    for (method, path), access in ROUTES.items():
        if method != "GET" and path not in harmless:
            assert access is Access.GENERATE, path


def test_generations_are_in_the_table() -> None:
    assert all(ROUTES["POST", path] is Access.GENERATE for path in GENERATIONS)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/result/0a", "/result/{job_id}"),
        ("POST", "/models/owner/name", "/models/{model_id:path}"),
        ("GET", "/docs-files/swagger-ui.css", "/docs-files/{path:path}"),
        ("GET", "/docs-files/a/b", "/docs-files/{path:path}"),
    ],
)
def test_paths_are_found(method: str, path: str, expected: str) -> None:
    found = find_route(method, path)
    assert isinstance(found, Found)
    assert found.path == expected


@pytest.mark.parametrize(
    ("method", "path", "methods"),
    [
        ("GET", "/ui/", ()),
        ("GET", "/ui/a/b", ()),
        ("POST", "/", ("GET",)),
        ("GET", "/result/a/b", ()),
        ("GET", "//jobs", ()),
        ("GET", "/jobs/", ()),
        ("GET", "/Jobs", ()),
        ("PUT", "/jobs", ("GET",)),
        ("PUT", "/sdapi/v1/options", ("GET", "POST")),
    ],
)
def test_others_are_not(method: str, path: str, methods: tuple[str, ...]) -> None:
    assert find_route(method, path) == methods
