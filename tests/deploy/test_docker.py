"""The image and docker-compose.yaml: by their linters, and consistent with what they run."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.config.check import check_config, missing_files

DEPLOY = Path(__file__).parents[2] / "deploy"
BIN = Path(sys.executable).parent


@pytest.fixture
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text())
    return content


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    found = subprocess.run([BIN / "hadolint", DEPLOY / "Dockerfile"], check=False, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


def test_everything_that_the_dockerfile_copies_is_sent_to_docker() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = {
        word
        for line in lines
        if line.startswith("COPY") and "--from" not in line
        for word in line.split()[1:-1]
        if not word.startswith("--")
    }
    ignored, *sent = [line for line in (DEPLOY.parent / ".dockerignore").read_text().splitlines() if line[0] != "#"]
    assert ignored == "*"
    assert {line.removeprefix("!") for line in sent if line.startswith("!")} == copied
    assert all((DEPLOY.parent / name).exists() for name in copied)


def test_the_image_is_not_roots() -> None:
    assert re.findall(r"^USER (\w+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE) == ["1000"]


def test_compose_takes_its_file() -> None:
    command = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "docker-compose.yaml"]
    checked = subprocess.run(command, check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_configuration_is_right_and_finds_its_neighbours(compose: dict[str, Any]) -> None:
    path = DEPLOY / "serve_config.compose.yaml"
    file = check_config(path)
    assert missing_files(path, file) == []
    settings, services = file.applications[0].args, compose["services"]
    environment = services["darkroom"]["environment"]
    assert settings.access.keys_env in environment
    postgres = services["postgres"]["environment"]
    assert settings.jobs.database_url.endswith(f"://{postgres['POSTGRES_USER']}@postgres/{postgres['POSTGRES_DB']}")
    assert environment["PGPASSWORD"] == postgres["POSTGRES_PASSWORD"]
    store = services["store"]["environment"]
    assert settings.images.url.startswith(f"s3://{store['S3_BUCKET']}/")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert environment[name] == store[name]
    assert services["darkroom"]["ports"] == [f"127.0.0.1:8000:{file.http_options.port}"]
    assert f"./{path.name}:/etc/darkroom/serve_config.yaml:ro" in services["darkroom"]["volumes"]


def test_no_secret_has_a_default(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for name, value in service["environment"].items():
            assert not re.search("PASSWORD|SECRET|_KEYS", name) or (value.startswith("${") and ":?" in value), name
