"""`darkroom serve` up to where `serve run` takes over, which tests/e2e has."""

import socket
from pathlib import Path

from serve_app.cli.serve import checked
from tests.serve_app.cli.command_line import config_with, darkroom


def test_a_wrong_configuration_starts_nothing(tmp_path: Path) -> None:
    result = darkroom("serve", config_with(tmp_path, ("port: 8000", "prot: 8000")))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "http_options.prot: unknown key" in result.stderr


def test_a_port_that_is_taken_starts_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as listener:
        port = listener.getsockname()[1]
        result = darkroom("serve", config_with(tmp_path, ("port: 8000", f"port: {port}")))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: can't listen on 127.0.0.1:{port}")


def test_the_address_is_the_configurations(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert checked(config_with(tmp_path, ("port: 8000", f"port: {port}"))) == f"http://127.0.0.1:{port}"
