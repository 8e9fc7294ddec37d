"""What a router says at its start of a Ray that `darkroom serve` didn't start."""

from pathlib import Path

import pytest

from serve_app.cli.serve import RAY_SETTINGS, ray_environment
from serve_app.router import missing_of_ray


def test_nothing_is_missing_of_what_darkroom_serve_starts(tmp_path: Path) -> None:
    environment = ray_environment({}, tmp_path)
    assert missing_of_ray(environment, int(RAY_SETTINGS["RAY_worker_niceness"])) == []


@pytest.mark.parametrize("environment", [{}, {"RAY_AUTH_MODE": "disabled"}])
def test_a_bare_start_lacks_a_token_and_priority(environment: dict[str, str]) -> None:
    token, priority = missing_of_ray(environment, 15)
    assert "RAY_AUTH_MODE=token" in token
    assert "nice 15" in priority


def test_a_token_that_others_may_read(tmp_path: Path) -> None:
    environment = ray_environment({}, tmp_path)
    Path(environment["RAY_AUTH_TOKEN_PATH"]).chmod(0o644)
    (private,) = missing_of_ray(environment, 0)
    assert f"may read {tmp_path}/.ray/auth_token (chmod 600)" in private
