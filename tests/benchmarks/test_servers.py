import subprocess
import sys
from pathlib import Path

import psutil
import yaml

from benchmarks.servers import _family, _stop, darkroom_config, free_port

ROOT = Path(__file__).resolve().parents[2]


def test_the_config_is_moved_and_otherwise_as_it_was(tmp_path: Path) -> None:
    path = ROOT / "serve_config.yaml"
    before = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = darkroom_config(path, tmp_path, 12345, safety=True)
    assert config["http_options"]["host"] == "127.0.0.1"
    assert config["http_options"]["port"] == 12345
    arguments, old = config["applications"][0]["args"], before["applications"][0]["args"]
    assert str(tmp_path) in arguments["jobs"]["database_url"]
    assert arguments["images"]["url"].startswith(str(tmp_path))
    assert arguments["provenance"]["c2pa"]["development_folder"].startswith(str(tmp_path))
    moved = dict.fromkeys(("jobs", "images", "provenance"))
    assert arguments | moved == old | moved
    assert darkroom_config(path, tmp_path, 1, safety=False)["applications"][0]["args"]["safety"]["mode"] == "off"


def test_stopping_a_server_ends_what_it_started_and_nothing_else() -> None:
    """A parent that ignores Ctrl-C's gentler cousin and has a child that outlives it."""
    child = "import time; time.sleep(600)"
    parent = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        "print('up', flush=True)\n"
        "time.sleep(600)\n"
    )
    bystander = subprocess.Popen([sys.executable, "-c", child])
    server = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert server.stdout is not None
    assert server.stdout.readline() == b"up\n"
    family = _family(server.pid)
    assert len(family) == 2
    _stop(server, grace_s=0.5)
    server.stdout.close()
    assert not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family)
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_a_free_port_is_one() -> None:
    assert 1024 <= free_port() <= 65_535
