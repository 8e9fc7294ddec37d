"""An environment has its own packages before Darkroom's, and is made once."""

import subprocess
import sysconfig
import zipfile
from dataclasses import replace
from pathlib import Path

from benchmarks.peers.environments import scripts_of
from benchmarks.peers.registry import BARE
from tests.benchmarks.peers.toy import toy


def test_without_packages_it_is_this_one(tmp_path: Path) -> None:
    assert scripts_of(BARE["demo"], tmp_path) == Path(sysconfig.get_path("scripts"))


def test_packages_are_installed_once_beside_darkrooms(tmp_path: Path) -> None:
    wheel = tmp_path / "pydantic-0.0.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("pydantic.py", "NAME = 'a toy'\n")
        file.writestr("pydantic-0.0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: pydantic\nVersion: 0.0.1\n")
        file.writestr(
            "pydantic-0.0.1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr("pydantic-0.0.1.dist-info/RECORD", "")
    contender = replace(toy(), packages=(str(wheel),))
    scripts = scripts_of(contender, tmp_path)
    code = "import pydantic, yaml; print(pydantic.NAME, yaml.__name__)"
    done = subprocess.run([scripts / "python", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "a toy yaml\n"
    wheel.unlink()
    assert scripts_of(contender, tmp_path) == scripts
