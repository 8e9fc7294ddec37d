"""The environment that a service on one machine starts Ray in."""

import re
import stat
from pathlib import Path

from serve_app.cli.ray_environment import QUIET, ray_environment


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
    given = {"RAY_AUTH_TOKEN_PATH": "elsewhere", "RAY_worker_niceness": "5", "HOME": "home"}
    assert ray_environment(given, tmp_path) == {"RAY_AUTH_MODE": "token", **QUIET, **given}
    assert not (tmp_path / ".ray").exists()
