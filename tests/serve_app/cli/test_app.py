"""The command as such: how it is installed, how fast it answers, what it says of wrong usage."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint, version
from pathlib import Path

import pytest

from serve_app.cli.app import app
from tests.serve_app.cli.command_line import COMMAND, ROOT, darkroom


def test_the_entry_point_is_the_command() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert EntryPoint("darkroom", scripts["darkroom"], "console_scripts").load() is app


def test_neither_help_nor_a_client_waits_for_torch_ray_or_diffusers() -> None:
    heavy = "{'torch', 'ray', 'diffusers'}"
    code = f"import sys, serve_app.cli.app, serve_app.cli.client; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_module_of_its_own_name() -> None:
    said = subprocess.run([*COMMAND, "--version"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert said == f"{version('darkroom')}\n"


@pytest.mark.parametrize(
    ("arguments", "about"),
    [
        (["generate", "a circle", "-o", "-", "--json"], "one image on stdout"),
        (
            ["generate", "a circle", "--local", "--config", "none.yaml"],
            "there is no none.yaml here: name a",
        ),
        (["generate", "a circle", "-o", "circle.gif"], "must end in .png"),
        (["generate", "a circle", "-o", "no/such/folder/circle.png"], "there is no folder"),
        (["generate", "a circle", "-o", "circle.png", "--steps", "many"], "--steps"),
        (["jobs", "--url", "nowhere"], "isn't a service's address"),
        (["jobs", "--url", "http://somebody:secret@127.0.0.1"], "--key"),
        (["jobs", "--key", "two words"], "printable ASCII"),
        (["jobs", "--limit", "0"], "--limit"),
        (["cancel"], "JOB"),
        (["serve", "no-such-file.yaml"], "no-such-file.yaml"),
        (["models", "verify", "no-such-file.yaml"], "no-such-file.yaml"),
        (["config", "check"], "FILE"),
        (["develop"], "develop"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], about: str, tmp_path: Path) -> None:
    result = darkroom(*arguments, COLUMNS="200")
    assert result.exit_code == 2
    assert about in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", [["serve"], ["models", "pull"], ["models", "verify"], ["generate", "x", "--local"]])
def test_a_folder_without_a_configuration(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = darkroom(*command, COLUMNS="200")
    assert result.exit_code == 2
    assert re.search(r"there is no serve_config.yaml (in this folder|here): name ", result.stderr)


def test_a_wrong_key_is_not_repeated() -> None:
    assert "secret" not in darkroom("jobs", "--key", "secret words").output
    assert "secret" not in darkroom("jobs", DARKROOM_API_KEY="secret words").output
    assert "secret" not in darkroom("jobs", "--url", "http://somebody:secret@127.0.0.1").output
