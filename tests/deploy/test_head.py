"""A head that comes back: with a Redis that outlives it, the service is there again without a deployment.

Also what a second shell needs: `serve deploy` and `serve status` by the two variables of the token.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from benchmarks.servers import darkroom_config, free_port
from serve_app.cli.serve import ray_environment

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs Debian's package `redis-server`"),
]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
START_S = 300.0
PASSWORD = "of this test alone"  # noqa: S105


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="darkroom-head-", dir="/tmp"))  # sockets need a short path
    yield path
    shutil.rmtree(path)


@pytest.fixture
def redis(folder: Path) -> Iterator[int]:
    """A Redis' port."""
    port = free_port()
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--requirepass", PASSWORD]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as server:
        yield port
        server.terminate()


@contextmanager
def head(folder: Path, environment: dict[str, str], ports: dict[str, int]) -> Iterator[None]:
    """The head as cluster.yaml starts it, in the foreground; then lost, as a machine is that loses its power."""
    command = [
        BIN / "ray",
        "start",
        "--head",
        "--block",
        "--num-cpus=2",
        "--num-gpus=0",
        f"--redis-password={PASSWORD}",
    ]
    command += [f"--temp-dir={folder}", "--object-store-memory=100000000", "--dashboard-host=127.0.0.1"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    with (
        (folder / "head.log").open("ab") as log,
        psutil.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        ) as process,
    ):
        try:
            yield
        finally:
            family = [process, *process.children(recursive=True)]
            for member in family:
                if member.is_running():
                    member.send_signal(signal.SIGKILL)
            psutil.wait_procs(family, timeout=60)


def until_answers(url: str, status: int, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        try:
            if httpx.get(url, timeout=5).status_code == status:
                return
        except httpx.HTTPError:
            pass  # nobody listens yet
        time.sleep(0.2)
    raise TimeoutError(log.read_text()[-5000:])


def test_the_service_is_back_with_its_jobs_and_without_a_deployment(folder: Path, redis: int) -> None:
    port = free_port()
    config = darkroom_config(ROOT / "serve_config.yaml", folder, port, safety=False)
    arguments: dict[str, Any] = config["applications"][0]["args"]
    arguments["models"] = {"demo-sd15": arguments["models"]["demo-sd15"]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{port}"
    ports = {"port": free_port(), "dashboard-port": free_port(), "ray-client-server-port": free_port()}
    environment = ray_environment(os.environ | {"RAY_AUTH_MODE": "token"}, folder)
    tools = environment | {"RAY_DASHBOARD_ADDRESS": f"http://127.0.0.1:{ports['dashboard-port']}"}
    environment |= {"RAY_REDIS_ADDRESS": f"127.0.0.1:{redis}", "RAY_external_storage_namespace": "darkroom"}
    request = {"prompt": "a red circle", "steps": 10, "width": 128, "height": 128}

    def serve(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        command = [BIN / "serve", *words]
        return subprocess.run(command, cwd=ROOT, env=tools | settings, check=False, capture_output=True, text=True)

    with head(folder, environment, ports):
        until_answers(f"{tools['RAY_DASHBOARD_ADDRESS']}/api/serve/applications/", 401, folder / "head.log")  # no token
        deployed = serve("deploy", str(folder / "config.yaml"))
        assert deployed.returncode == 0, deployed.stderr
        until_answers(f"{url}/ready", 200, folder / "head.log")
        status = serve("status")
        assert yaml.safe_load(status.stdout)["applications"]["darkroom"]["status"] == "RUNNING", status.stderr
        assert serve("status", RAY_AUTH_TOKEN_PATH=str(folder / "none")).returncode != 0
        drawn = httpx.post(f"{url}/generate", json=request, headers={"Prefer": "wait=60"}, timeout=90).json()
        assert drawn["status"] == "complete", drawn
        assert drawn["images"][0]["signed"], "with the certificate that the start made"

    with head(folder, environment, ports):
        until_answers(f"{url}/ready", 200, folder / "head.log")
        kept = httpx.get(f"{url}/result/{drawn['job_id']}", timeout=5).json()
        assert kept["images"] == drawn["images"]
        again = httpx.post(f"{url}/generate", json=request, headers={"Prefer": "wait=60"}, timeout=90).json()
        assert again["status"] == "complete", again
