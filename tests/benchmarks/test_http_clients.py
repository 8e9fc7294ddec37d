"""A running service that a benchmark is to measure is asked for before anything is measured."""

import http.server
import importlib
import threading

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.http_clients import answering
from benchmarks.servers import free_port


@pytest.mark.parametrize(
    ("benchmark", "options"), [("peers.__main__", []), ("eta", []), ("overload", ["--capacity", "1"])]
)
def test_an_address_where_nobody_listens_ends_a_benchmark_at_once(benchmark: str, options: list[str]) -> None:
    app = typer.Typer()
    app.command()(importlib.import_module(f"benchmarks.{benchmark}").run)
    url = f"http://127.0.0.1:{free_port()}"
    result = CliRunner(env={"COLUMNS": "250"}).invoke(app, [*options, "--url", url])
    assert result.exit_code == 2, result.output
    assert f"no service answers at {url}" in result.stderr


def test_a_service_that_answers() -> None:
    class Alive(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Tests have their own words."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Alive)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        assert answering(url) == url
        assert answering(None) is None
        with pytest.raises(typer.BadParameter, match="404"):
            answering(f"{url}/elsewhere")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
