"""A service that isn't there, isn't Darkroom, refuses the caller, or ends the stream of a job too early."""

import http.server
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from serve_app.auth.key_file import Scope
from serve_app.config.settings import Settings
from serve_app.stages.client import Stages
from tests.serve_app.cli.command_line import darkroom, darkroom_beside, document
from tests.serve_app.front import front
from tests.serve_app.keyed import GENERATE_READ, with_keys
from tests.serve_app.served import served

JOB = "0" * 32


@pytest.fixture
def keys(raw_settings: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    return with_keys(raw_settings, tmp_path / "keys", alice=GENERATE_READ, bob=frozenset({Scope.GENERATE}))


@pytest.fixture
async def keyed_url(keys: dict[str, str], raw_settings: dict[str, Any], stages: Stages) -> AsyncIterator[str]:
    async with front(Settings.model_validate(raw_settings), stages) as one, served(one) as address:
        yield address


@pytest.fixture
def stranger() -> Iterator[str]:
    """Another program's HTTP server."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    "command", [["jobs"], ["models", "list"], ["cancel", "0" * 32], ["generate", "x", "-o", "x.png"]]
)
def test_nobody_listens(command: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = darkroom(*command, "--url", f"http://127.0.0.1:{port}", "--json")
    assert (result.exit_code, document(result)["error"]["code"]) == (1, "unreachable")
    assert f"no service answers at http://127.0.0.1:{port}" in result.stderr
    assert "`darkroom serve` starts one" in result.stderr


def test_somebody_else_listens(stranger: str, capfd: pytest.CaptureFixture[str]) -> None:
    result = darkroom("jobs", "--url", stranger, "--json")
    assert (result.exit_code, document(result)["error"]["code"]) == (1, "not_darkroom")
    assert "is the address right, and has the service started?" in result.stderr


def test_who_hangs_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        result = darkroom("jobs", "--url", f"http://127.0.0.1:{listener.getsockname()[1]}", "--json")
        thread.join()
    assert (result.exit_code, document(result)["error"]["code"]) == (1, "connection_lost")


@pytest.mark.parametrize(
    "command", [["jobs"], ["models", "list"], ["cancel", "0" * 32], ["generate", "x", "-o", "x.png"]]
)
async def test_without_a_key(keyed_url: str, command: list[str]) -> None:
    for given in ({}, {"DARKROOM_API_KEY": "dk-no-key-of-ours"}):
        result = await darkroom_beside(*command, "--url", keyed_url, "--json", **given)
        assert (result.exit_code, document(result)["error"]["code"]) == (1, "unauthenticated")
        assert "401: " in result.stderr
        assert "give a key with --key or DARKROOM_API_KEY" in result.stderr


async def test_with_a_key(keyed_url: str, keys: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    drawn = await darkroom_beside(
        "generate", "a circle", "-o", path, "--seed", 2, "--url", keyed_url, DARKROOM_API_KEY=keys["alice"]
    )
    assert (drawn.exit_code, path.exists()) == (0, True), drawn.output
    assert (await darkroom_beside("jobs", "--url", keyed_url, "--key", keys["alice"])).exit_code == 0


async def test_a_queue_that_is_full(raw_settings: dict[str, Any], stages: Stages, tmp_path: Path) -> None:
    settings = Settings.model_validate({**raw_settings, "jobs": {**raw_settings["jobs"], "max_queued": 1}})
    async with front(settings, stages) as one, served(one) as address:
        await one.generate("endless", wait=None)
        result = await darkroom_beside("generate", "x", "-o", tmp_path / "x.png", "--url", address, "--json")
    assert (result.exit_code, document(result)["error"]["code"]) == (1, "queue_full")
    assert "try again in " in result.stderr


async def test_a_key_without_the_scope(keyed_url: str, keys: dict[str, str]) -> None:
    result = await darkroom_beside("jobs", "--url", keyed_url, "--key", keys["bob"], "--json")
    assert (result.exit_code, document(result)["error"]["code"]) == (1, "forbidden")


@contextmanager
def service_with_events(events: bytes) -> Iterator[str]:
    """Accepts every request and answers for its events with these bytes, after which the stream ends."""
    accepted = {"job_id": JOB, "status": "queued", "links": {"events": f"/jobs/{JOB}/events"}}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(202, json.dumps(accepted).encode())

        def do_GET(self) -> None:
            self._answer(200, events)

        def _answer(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Tests have their own words."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("events", "code", "message"),
    [
        (b"", "connection_lost", "before its end"),
        (
            b'event: queued\ndata: {"position": 1, "eta_seconds": null}\n\n: nothing new\n\nevent: progr',
            "connection_lost",
            "before its end",
        ),
        (
            b'event: error\ndata: {"error": {"code": "store_unavailable", "message": "the database is gone"}}\n\n',
            "store_unavailable",
            "the database is gone",
        ),
    ],
)
def test_a_stream_that_ends_before_its_job(tmp_path: Path, events: bytes, code: str, message: str) -> None:
    with service_with_events(events) as url:
        result = darkroom("generate", "x", "-o", tmp_path / "x.png", "--url", url, "--json")
    assert (result.exit_code, document(result)["error"]["code"]) == (1, code)
    assert message in result.stderr
    assert document(result)["job_id"] == JOB
    assert f"job {JOB[-8:]}" in result.stderr
