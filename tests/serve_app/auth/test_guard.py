"""Who is let in: keys, scopes, links and rates over the real application, and each refusal in its dialect's form."""

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.auth.key_file import BadKeys, Scope, new_key
from serve_app.auth.route_scopes import PUBLIC, routes_of
from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.front import Front, front
from tests.serve_app.keyed import GENERATE_READ, bearer, with_keys

NOBODY = new_key("nobody", GENERATE_READ)[0]

# dialect -> a route of it that needs a key
DIALECTS = {
    "native": ("POST", "/generate"),
    "openai": ("POST", "/v1/images/generations"),
    "a1111": ("POST", "/sdapi/v1/txt2img"),
    "hugging face": ("POST", "/models/demo-sd15"),
}


@pytest.fixture
def keys(raw_settings: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    return with_keys(
        raw_settings,
        tmp_path / "keys",
        alice=GENERATE_READ,
        reader=frozenset({Scope.READ}),
        maker=frozenset({Scope.GENERATE}),
        ops=frozenset({Scope.ADMIN}),
    )


@pytest.fixture
async def running(raw_settings: dict[str, Any], keys: dict[str, str], stages: Stages) -> AsyncIterator[Front]:
    async with front(Settings.model_validate(raw_settings), stages) as one:
        yield one


def filled(path: str) -> str:
    """A route's path with something in its gaps."""
    path = path.replace("/ui/{name}", "/ui/style.css")
    for gap, value in {
        "{job_id}": "0" * 32,
        "{name}": "0" * 32 + "-1-0.png",
        "{model_id}": "demo-sd15",
        "{model_id:path}": "demo-sd15",
    }.items():
        path = path.replace(gap, value)
    return path


def message_of(dialect: str, body: Any) -> tuple[str, str]:
    """Code and message of an error, from where the dialect's clients look for them."""
    match dialect:
        case "native" | "openai":
            return body["error"]["code"], body["error"]["message"]
        case "a1111":
            return body["error"], body["detail"]
        case _:
            return body["error_type"], body["error"]


async def test_without_a_key_only_what_is_public_answers(running: Front) -> None:
    for (method, path), access in routes_of(running.app).items():
        if access is None:  # files of the documentation
            continue
        for headers in ({}, {"authorization": ""}, bearer(NOBODY), {"x-api-key": "x"}):
            response = await running.http.request(method, filled(path), headers=headers)
            if access == PUBLIC:
                assert response.status_code == 200, path
            else:
                assert response.status_code == 401, path
                assert "www-authenticate" in response.headers


@pytest.mark.parametrize("path", ["/openapi.json", "/docs-files/swagger-ui.css"])
async def test_the_documentation_s_files_need_no_key(running: Front, path: str) -> None:
    assert (await running.http.get(path)).status_code == 200


async def test_a_key_may_do_what_its_scopes_say(running: Front, keys: dict[str, str]) -> None:
    for (method, path), access in routes_of(running.app).items():
        if access is None:
            continue
        for owner, may in {
            "reader": access.scope in (None, Scope.READ),
            "maker": access.scope in (None, Scope.GENERATE),
            "alice": access.scope is not Scope.ADMIN,
            "ops": True,
        }.items():
            response = await running.http.request(method, filled(path), headers=bearer(keys[owner]))
            assert (response.status_code == 403) is not may, (owner, path, response.text)
            assert response.status_code != 401


async def test_the_body_of_a_refused_request_is_not_read(running: Front, keys: dict[str, str]) -> None:
    read = False

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read = True
        yield b"{}"

    for (method, path), access in routes_of(running.app).items():
        if method != "POST" or access is None or access.scope is None:
            continue
        refusals = [({}, 401), (bearer(keys["reader"]), 403)]
        for headers, status in refusals if access.scope is Scope.GENERATE else refusals[:1]:
            response = await running.http.post(filled(path), headers=headers, content=body())
            assert (response.status_code, read) == (status, False), path


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_each_dialect_refuses_in_its_own_form(running: Front, keys: dict[str, str], dialect: str) -> None:
    method, path = DIALECTS[dialect]
    unknown = await running.http.request(method, path)
    code, message = message_of(dialect, unknown.json())
    assert (unknown.status_code, code) == (401, "invalid_api_key" if dialect == "openai" else "unauthenticated")
    assert "API key" in message
    scheme = "Basic" if dialect == "a1111" else "Bearer"
    assert unknown.headers["www-authenticate"].startswith(f'{scheme} realm="Darkroom"')
    forbidden = await running.http.request(method, path, headers=bearer(keys["reader"]))
    code, message = message_of(dialect, forbidden.json())
    assert (forbidden.status_code, code) == (403, "forbidden")
    assert "generate" in message


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_each_dialect_says_too_many_in_its_own_form(
    raw_settings: dict[str, Any], tmp_path: Path, stages: Stages, dialect: str
) -> None:
    raw_settings["access"] = {"generations": "1/hour"}
    keys = with_keys(raw_settings, tmp_path / "keys", alice=GENERATE_READ, bob=GENERATE_READ)
    method, path = DIALECTS[dialect]
    async with front(Settings.model_validate(raw_settings), stages) as one:
        first = await one.http.request(method, path, headers=bearer(keys["alice"]))
        second = await one.http.request(method, path, headers=bearer(keys["alice"]))
        other = await one.http.request(method, path, headers=bearer(keys["bob"]))
    assert (first.status_code, other.status_code) == (415, 415)  # let in: the body is what is missing
    code, _ = message_of(dialect, second.json())
    assert (second.status_code, code) == (429, "rate_limit_exceeded" if dialect == "openai" else "rate_limited")
    assert 1 <= int(second.headers["retry-after"]) <= 7_200
    if dialect == "openai":
        assert second.headers["x-should-retry"] == "true"


async def test_a_key_may_come_in_four_ways(running: Front, keys: dict[str, str]) -> None:
    basic = base64.b64encode(f"anything:{keys['alice']}".encode()).decode()
    alice = keys["alice"]
    for headers in (bearer(alice), {"x-api-key": alice}, {"api-key": alice}, {"authorization": f"Basic {basic}"}):
        assert (await running.http.get("/models", headers=headers)).status_code == 200


async def test_a_revoked_key_is_out_without_a_restart(running: Front, keys: dict[str, str], tmp_path: Path) -> None:
    key, line = new_key("carol", GENERATE_READ)
    assert (await running.http.get("/models", headers=bearer(key))).status_code == 401
    (tmp_path / "keys").write_text(line)
    assert (await running.http.get("/models", headers=bearer(key))).status_code == 200
    assert (await running.http.get("/models", headers=bearer(keys["alice"]))).status_code == 401


async def test_readiness_tells_details_to_keys_alone(running: Front, keys: dict[str, str]) -> None:
    assert (await running.http.get("/ready")).json()["jobs"] == {"state": "ready"}
    known = (await running.http.get("/ready", headers=bearer(keys["reader"]))).json()
    assert known["jobs"] == {"state": "ready", "queued": 0, "running": 0}


async def test_an_image_s_address_works_for_a_while_without_a_key(running: Front, keys: dict[str, str]) -> None:
    headers = {**bearer(keys["alice"]), "prefer": "wait=30"}
    body = (await running.http.post("/generate", json={"prompt": "a red circle", "seed": 2}, headers=headers)).json()
    url = body["image_url"]
    assert (await running.http.get(url)).headers["content-type"] == "image/png"
    path, _, query = url.partition("?")
    assert (await running.http.get(path)).status_code == 401
    assert (await running.http.get(path, headers=bearer(keys["alice"]))).status_code == 200
    assert (await running.http.get(path, headers=bearer(keys["maker"]))).status_code == 403
    assert (await running.http.get(f"{path[:-5]}1.png?{query}")).status_code == 401
    assert (await running.http.get(f"/result/{body['job_id']}?{query}")).status_code == 401


async def test_openai_s_url_works_without_a_key(running: Front, keys: dict[str, str]) -> None:
    asked = {"prompt": "a red circle", "response_format": "url", "seed": 2}
    response = await running.http.post("/v1/images/generations", json=asked, headers=bearer(keys["alice"]))
    assert (await running.http.get(response.json()["data"][0]["url"])).headers["content-type"] == "image/png"


async def test_no_application_with_keys_that_can_t_be_read(
    raw_settings: dict[str, Any], keys: dict[str, str], stages: Stages, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("nonsense")
    with pytest.raises(BadKeys, match="line 1"):
        await front(Settings.model_validate(raw_settings), stages).__aenter__()


@pytest.mark.parametrize(
    ("address", "open_to_all", "status"),
    [
        ("127.0.0.1", False, 200),
        ("[::1]", False, 200),
        ("[::ffff:127.0.0.1]", False, 200),
        ("10.0.0.1", False, 403),
        ("[2001:db8::1]", False, 403),
        ("10.0.0.1", True, 200),
    ],
)
async def test_without_keys_only_loopback_is_answered_unless_the_settings_say_otherwise(
    raw_settings: dict[str, Any], stages: Stages, address: str, open_to_all: bool, status: int
) -> None:
    raw_settings["access"] = {"open_to_all": open_to_all}
    async with front(Settings.model_validate(raw_settings), stages) as one:
        url = f"http://{address}:8000"
        transport = httpx.ASGITransport(app=one.app)
        # what the connection says counts, not what the client says
        headers = {"host": "127.0.0.1:8000", "x-forwarded-for": "127.0.0.1", "x-forwarded-host": "127.0.0.1"}
        async with httpx.AsyncClient(transport=transport, base_url=url, headers=headers) as http:
            assert (await http.get("/jobs")).status_code == status
            assert (await http.get("/health")).status_code == 200


@pytest.mark.parametrize(
    ("host", "own"),
    [
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("localhost", True),
        ("host.docker.internal:8000", True),
        ("gpu-box.local", True),
        ("gpu-box", True),
        ("rebound.example.com:8000", False),
        ("127.0.0.1.example.com", False),
        ("localhost.example.com", False),
    ],
)
async def test_without_keys_a_stranger_s_name_leads_nowhere(
    settings: Settings, stages: Stages, host: str, own: bool
) -> None:
    async with front(settings, stages) as one:
        response = await one.http.get("/jobs", headers={"host": host})
        assert response.status_code == (200 if own else 403)


@pytest.mark.parametrize("site", ["cross-site", "same-origin", "none"])
async def test_a_page_elsewhere_can_t_make_a_browser_act(settings: Settings, stages: Stages, site: str) -> None:
    async with front(settings, stages) as one:
        response = await one.http.post("/sdapi/v1/interrupt", headers={"sec-fetch-site": site})
        assert response.status_code == (403 if site == "cross-site" else 200)
        assert (await one.http.get("/docs", headers={"sec-fetch-site": site})).status_code == 200


async def test_a_websocket_is_closed(running: Front) -> None:
    sent = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    await running.app({"type": "websocket", "path": "/jobs", "headers": []}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize("path", ["/health", "/jobs", "/nowhere", "/docs", "/docs-files/swagger-ui.css"])
async def test_every_answer_carries_safe_headers(running: Front, path: str) -> None:
    for scheme in ("http", "https"):
        headers = (await running.http.get(f"{scheme}://darkroom{path}")).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert "camera=()" in headers["permissions-policy"]
        assert "default-src 'none'" in headers["content-security-policy"]
        assert ("strict-transport-security" in headers) == (scheme == "https")
        assert ("etag" in headers) != (headers.get("cache-control") == "no-store")
