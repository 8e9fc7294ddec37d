"""Runs the command line as its tests do: in this process for what it says, in one of its own for its signals."""

import json
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from serve_app.cli.app import app
from tests.serve_app.served import beside

ROOT = Path(__file__).parents[3]
COMMAND = (sys.executable, "-m", "serve_app.cli")

# whatever the tester's own shell says
_NO_ENVIRONMENT = {"DARKROOM_URL": None, "DARKROOM_API_KEY": None}


def darkroom(*arguments: object, **environment: str) -> Result:
    """The command's end; an exception that isn't one of its own ways to end fails the test."""
    runner = CliRunner(env={**_NO_ENVIRONMENT, **environment})
    return runner.invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


async def darkroom_beside(*arguments: object, **environment: str) -> Result:
    """The same while this process serves."""
    return await beside(lambda: darkroom(*arguments, **environment))


def document(result: Result) -> Any:
    """The one JSON document on stdout."""
    return json.loads(result.stdout)


def config_with(folder: Path, *changes: tuple[str, str]) -> Path:
    """The default configuration with texts of it replaced."""
    text = (ROOT / "serve_config.yaml").read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = folder / "serve_config.yaml"
    path.write_text(text)
    return path
