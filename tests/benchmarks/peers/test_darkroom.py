"""The configurations that Darkroom is measured with are ones that it starts with."""

from pathlib import Path

import pytest
import yaml

from benchmarks.peers.contender import Place
from benchmarks.peers.darkroom import DARKROOM, EAGER_DARKROOM, REAL_DARKROOM, default_configuration
from benchmarks.servers import free_port
from serve_app.config.check import check_start

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("contender", [DARKROOM, EAGER_DARKROOM, REAL_DARKROOM], ids=lambda one: one.name)
def test_it_is_a_configuration(contender: object, tmp_path: Path, tiny_sd15: Path) -> None:
    assert isinstance(contender, type(DARKROOM))
    assert contender.command is not None
    port = free_port()
    command = contender.command(Place(Path("/venv/bin"), port, tiny_sd15, tmp_path))
    assert command[:2] == ["/venv/bin/darkroom", "serve"]
    assert check_start(Path(command[2])).http_options.port == port


def test_only_its_place_and_what_holds_clients_up_differ(tmp_path: Path) -> None:
    before = yaml.safe_load((ROOT / "serve_config.yaml").read_text(encoding="utf-8"))["applications"][0]["args"]
    now = default_configuration(Place(Path(), 1, Path(), tmp_path))["applications"][0]["args"]
    assert {name for name in before if now[name] != before[name]} == {
        "access",
        "images",
        "jobs",
        "provenance",
        "safety",
    }
    assert now["safety"] == before["safety"] | {"mode": "flag"}
