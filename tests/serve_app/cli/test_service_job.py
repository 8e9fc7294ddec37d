"""A service that takes a job and then says no more of it than that, or that it can't."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.serve_app.cli.command_line import darkroom, document

JOB = "0" * 32


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
        (b'event: queued\ndata: {"position": 1}\n\n: nothing new\n\nevent: progr', "connection_lost", "before its end"),
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
    assert JOB in result.stderr
