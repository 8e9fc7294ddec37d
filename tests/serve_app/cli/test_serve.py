"""`darkroom serve` up to where `serve run` begins, which tests/e2e has; `darkroom bench`."""

import os
import re
import shlex
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from serve_app.cli.output import Failure
from serve_app.cli.serve import RAY_SETTINGS, bench_command, checked_addresses, other_shells, ray_environment
from serve_app.cli.service_process import Addresses
from tests.serve_app.cli.command_line import COMMAND, config_with, darkroom


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
    here = f"http://127.0.0.1:{port}"
    path = config_with(tmp_path, ("port: 8000", f"port: {port}"))
    assert checked_addresses(path) == Addresses(page=f"{here}/", ready=f"{here}/ready")
    changes = ("port: 8000", f"port: {port}"), ("route_prefix: /", "route_prefix: /pictures")
    changes += (("host: 127.0.0.1", "host: 0.0.0.0\n  root_path: /art"), ("keys_file: null", "open_to_all: true"))
    path = config_with(tmp_path, *changes)
    assert checked_addresses(path) == Addresses(page=f"{here}/art/pictures/", ready=f"{here}/pictures/ready")


def test_the_token_is_made_once_and_nobody_elses_business(tmp_path: Path) -> None:
    path = tmp_path / ".ray" / "auth_token"
    environment = ray_environment({}, tmp_path)
    assert (environment["RAY_AUTH_MODE"], environment["RAY_AUTH_TOKEN_PATH"]) == ("token", str(path))
    token = path.read_text()
    assert re.fullmatch(r"[0-9a-f]{64}\n", token)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    ray_environment({}, tmp_path)
    assert path.read_text() == token


def test_what_the_shell_says_counts(tmp_path: Path) -> None:
    shell = {"RAY_AUTH_TOKEN_PATH": "elsewhere", "RAY_worker_niceness": "5", "HOME": "home"}
    assert ray_environment(shell, tmp_path) == {"RAY_AUTH_MODE": "token", **RAY_SETTINGS, **shell}
    assert not (tmp_path / ".ray").exists()


def test_another_shell_is_told_what_it_needs(tmp_path: Path) -> None:
    folder = tmp_path / "two words"
    folder.mkdir()
    line = other_shells(Path("/venv/bin/serve"), ray_environment({}, folder))
    words = shlex.split(line.removeprefix("From another shell: ").partition("  ")[0])
    assert words == [
        "RAY_AUTH_MODE=token",
        f"RAY_AUTH_TOKEN_PATH={folder}/.ray/auth_token",
        "/venv/bin/serve",
        "status",
    ]


def test_options_are_the_benchmarks_own(tmp_path: Path) -> None:
    environment = {**os.environ, "COLUMNS": "200", "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [*COMMAND, "bench", "--help"]
    asked = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert "--quick" in asked.stdout


def test_a_package_without_its_checkout(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="run this in a checkout"):
        bench_command(tmp_path, ["--quick"])
