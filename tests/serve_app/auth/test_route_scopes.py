"""Every route of the real application declares what it asks of its caller, before anything else."""

from serve_app.auth.key_file import Scope
from serve_app.auth.route_scopes import PUBLIC
from tests.serve_app.front import Front
from tests.serve_app.routes import OPEN, routes_of


async def test_every_route_says_first_who_may_ask(running: Front) -> None:
    undeclared = {route for route, access in routes_of(running.app).items() if access is None}
    assert undeclared == OPEN


async def test_what_is_public_tells_nothing_of_anybody(running: Front) -> None:
    public = {path for (_, path), access in routes_of(running.app).items() if access == PUBLIC}
    assert public == {"/", "/ui/{name}", "/health", "/ready", "/docs"}


async def test_whatever_changes_something_needs_more_than_reading(running: Front) -> None:
    harmless = {"/sdapi/v1/png-info", "/sdapi/v1/refresh-checkpoints", "/sdapi/v1/refresh-loras", "/internal/progress"}
    for (method, path), access in routes_of(running.app).items():
        assert access is None or access.scope is Scope.GENERATE or method == "GET" or path in harmless, path


async def test_whatever_draws_has_a_rate_of_its_own(running: Front) -> None:
    drawing = {path for (_, path), access in routes_of(running.app).items() if access is not None and access.draws}
    assert drawing == {
        "/generate",
        "/upscale",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/images/variations",
        "/sdapi/v1/txt2img",
        "/sdapi/v1/img2img",
        "/sdapi/v1/extra-single-image",
        "/sdapi/v1/extra-batch-images",
        "/models/{model_id:path}",
        "/predict",
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
        ("POST", "/", "GET"),
        ("PUT", "/jobs", "GET"),
        ("PUT", "/sdapi/v1/options", "GET, POST"),
        ("GET", "/models/owner/name", "POST"),
    ):
        answer = await running.http.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed), path
