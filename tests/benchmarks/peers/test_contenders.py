"""What each contender's client sends, against a server that takes nothing else."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from benchmarks.http_clients import http_client
from benchmarks.peers.bentoml import BENTOML
from benchmarks.peers.contender import Contender
from benchmarks.peers.litserve import LITSERVE
from benchmarks.peers.ray_serve import RAY_SERVE
from benchmarks.peers.registry import BARE, CONTENDERS
from benchmarks.peers.requests import DEMO

PICTURE = b"\x89PNG and so on"
REQUEST = DEMO.model_copy(update={"prompt": "a red circle", "seed": 8})


class Handler(BaseHTTPRequestHandler):
    """Answers as the servers in benchmarks/peers/servers do."""

    status = 200

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/draw" and asked == {"requests": [REQUEST.model_dump()]}:
            self._answer(json.dumps([base64.b64encode(PICTURE).decode()]).encode())
        elif self.path in ("/", "/predict") and asked == REQUEST.model_dump():
            self._answer(PICTURE)
        else:
            self.send_error(404)

    def do_GET(self) -> None:
        asked = {name: value for name, [value] in parse_qs(urlsplit(self.path).query).items()}
        fits = self.path.startswith("/imagine?") and asked == {k: str(v) for k, v in REQUEST.model_dump().items()}
        self._answer(PICTURE) if fits else self.send_error(404)

    def log_message(self, *_: object) -> None:
        """Tests have their own words."""

    def _answer(self, content: bytes) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("contender", [BARE["demo"], LITSERVE, RAY_SERVE, BENTOML], ids=lambda one: one.name)
async def test_a_request_in_the_servers_words(contender: Contender, url: str) -> None:
    async with http_client(url, 10) as http:
        answer = await contender.client(http).generate(REQUEST)
        assert (answer.fate, answer.image, answer.reason) == ("done", PICTURE, "")
        other = await contender.client(http).generate(REQUEST.model_copy(update={"prompt": "a"}))
        assert (other.fate, other.reason[:3]) == ("failed", "404")


@pytest.mark.parametrize(("status", "fate"), [(429, "refused"), (503, "refused"), (500, "failed")])
async def test_what_isnt_a_picture(status: int, fate: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Handler, "status", status)
    async with http_client(url, 10) as http:
        assert (await LITSERVE.client(http).generate(REQUEST)).fate == fate


async def test_nobody_there() -> None:
    async with http_client("http://127.0.0.1:9", 1) as http:
        assert (await LITSERVE.client(http).generate(REQUEST)).fate == "failed"


def test_names_are_unique_and_every_release_is_pinned() -> None:
    assert all("==" in package for contender in CONTENDERS.values() for package in contender.packages)
    assert all(name == contender.name for name, contender in CONTENDERS.items())
