"""`darkroom serve` up to where `serve run` takes over, which tests/e2e has."""

import re
import socket
import stat
from pathlib import Path

from serve_app.cli.serve import RAY_DEFAULTS, checked, serve_environment
from tests.serve_app.cli.command_line import ROOT, config_with, darkroom


def test_a_wrong_configuration_starts_nothing(tmp_path: Path) -> None:
    result = darkroom("serve", config_with(tmp_path, ("port: 8000", "prot: 8000")))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "http_options.prot: unknown key" in result.stderr


def test_a_port_that_is_taken_starts_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as listener:
        port = listener.getsockname()[1]
        result = darkroom("serve", config_with(tmp_path, ("port: 8000", f"port: {port}")))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: 127.0.0.1:{port} can't be listened on")


def test_the_address_is_the_configurations(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert checked(config_with(tmp_path, ("port: 8000", f"port: {port}"))) == f"http://127.0.0.1:{port}"


def test_ray_gets_what_make_serve_gives_it() -> None:
    exported = dict(re.findall(r"^export (\w+) \?= (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {name: value.removeprefix("$(CURDIR)/") for name, value in exported.items()} == RAY_DEFAULTS


def test_the_token_is_made_once_and_nobody_elses_business(tmp_path: Path) -> None:
    path = tmp_path / ".ray" / "auth_token"
    assert serve_environment({}, tmp_path)["RAY_AUTH_TOKEN_PATH"] == str(path)
    token = path.read_text()
    assert re.fullmatch(r"[0-9a-f]{64}\n", token)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    serve_environment({}, tmp_path)
    assert path.read_text() == token


def test_what_the_shell_says_counts(tmp_path: Path) -> None:
    given = {"RAY_AUTH_TOKEN_PATH": "elsewhere", "RAY_worker_niceness": "5", "HOME": "home"}
    environment = serve_environment(given, tmp_path)
    assert environment == {**RAY_DEFAULTS, **given}
    assert not (tmp_path / ".ray").exists()
