"""`darkroom bench` hands over to the benchmarks of its checkout."""

import os
import subprocess
from pathlib import Path

import pytest

from serve_app.cli.bench import bench_command
from serve_app.cli.failure import Failure
from tests.serve_app.cli.command_line import COMMAND


def test_options_are_the_benchmarks_own(tmp_path: Path) -> None:
    environment = {**os.environ, "COLUMNS": "200", "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [*COMMAND, "bench", "--help"]
    asked = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert "--quick" in asked.stdout


def test_a_package_without_its_checkout(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="run this from a checkout"):
        bench_command(tmp_path, ["--quick"])
