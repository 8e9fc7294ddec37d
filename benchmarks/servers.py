"""Starts and stops the services that are measured: processes of this benchmark's own, on loopback, in its own folder.

Darkroom is started as `make serve` starts it, with the config's port, database and images moved into the folder and
Ray kept from joining a cluster that may run on this machine. Only processes started here are ever stopped.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml

from serve_app.cli.serve import RAY_SETTINGS

_ROOT = Path(__file__).resolve().parent.parent

# as `make serve` starts it, but for the token: a cluster of its own, for a while
DARKROOM_ENVIRONMENT = {**RAY_SETTINGS, "RAY_AUTH_MODE": "disabled"}

_STOP_S = 60.0

Alive = Callable[[], bool]


def free_port() -> int:
    """A TCP port on loopback that nobody listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def darkroom_config(config: Path, folder: Path, port: int, safety: bool) -> dict[str, Any]:
    """The config as it is measured: its own port, database and images; without the safety layers on wish."""
    content: dict[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8"))
    content["http_options"] = {**content.get("http_options", {}), "host": "127.0.0.1", "port": port}
    arguments = content["applications"][0]["args"]
    arguments["jobs"] = {**arguments.get("jobs", {}), "database_url": f"sqlite+aiosqlite:///{folder}/jobs.db"}
    arguments["images"] = {**arguments.get("images", {}), "url": str(folder / "images")}
    if arguments.get("provenance", {}).get("c2pa", {}).get("development_folder"):
        arguments["provenance"] = {"c2pa": {"development_folder": str(folder / "provenance")}}
    if not safety:
        arguments["safety"] = {**arguments.get("safety", {}), "mode": "off"}
    return content


@contextlib.contextmanager
def darkroom(config: Mapping[str, Any], folder: Path) -> Iterator[Alive]:
    """Darkroom with this config, for the length of the block. Its output goes to folder/darkroom.log."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    environment = {**DARKROOM_ENVIRONMENT, "RAY_TMPDIR": str(folder)}
    command = [str(Path(sys.executable).with_name("serve")), "run", "--address", "local", str(path)]
    with _process(command, folder / "darkroom.log", environment) as alive:
        yield alive


@contextlib.contextmanager
def classic(checkpoint: str, sampler: str, folder: Path, port: int) -> Iterator[Alive]:
    """The classic server, for the length of the block. Its output goes to folder/classic.log."""
    images = folder / "classic"
    images.mkdir()
    command = [sys.executable, "-m", "benchmarks.classic", "serve", checkpoint]
    command += ["--folder", str(images), "--port", str(port), "--sampler", sampler]
    with _process(command, folder / "classic.log", {}) as alive:
        yield alive


@contextlib.contextmanager
def _process(command: list[str], log: Path, environment: Mapping[str, str]) -> Iterator[Alive]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=_ROOT,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C comes to this process, which then stops its servers in order
        )
        try:
            yield lambda: process.poll() is None
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes], grace_s: float = 10.0) -> None:
    """In order; who of its family hasn't ended within a while after it is ended, by its id."""
    family = _family(process.pid)
    if process.poll() is None:
        process.terminate()  # Ctrl-C's signal is ignored in what a shell runs in the background
    deadline = time.monotonic() + _STOP_S
    while process.poll() is None and time.monotonic() < deadline:
        family |= _family(process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.25)
    _, alive = psutil.wait_procs(family, timeout=grace_s)
    for one in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.terminate()
    _, alive = psutil.wait_procs(alive, timeout=5)
    for one in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def _family(pid: int) -> set[psutil.Process]:
    """The process and all that descend from it, whatever becomes of their parents."""
    try:
        process = psutil.Process(pid)
        return {process, *process.children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()
