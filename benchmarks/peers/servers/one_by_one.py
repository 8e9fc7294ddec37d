"""The thinnest server there is: the standard library's, one thread that draws one picture after the other.

POST / with a request in JSON answers with the PNG. Who waits, waits in the socket's backlog.
"""

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from benchmarks.peers.servers.picture import Request


class _Server(HTTPServer):
    request_queue_size = 128


def serve(draw: Callable[[Request], bytes], port: int) -> None:
    """Serve on loopback until the process ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer("text/plain", b"ready")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer("image/png", draw(json.loads(body)))

        def log_message(self, *_arguments: Any) -> None:
            pass

        def _answer(self, content_type: str, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    _Server(("127.0.0.1", port), Handler).serve_forever()
