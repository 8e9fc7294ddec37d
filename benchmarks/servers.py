"""Starts and stops the servers that are measured: processes of this benchmark's own, on loopback, in its own folder.

Darkroom's config has its port, database and images moved into the folder. Only processes started here are ever stopped.
"""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from serve_app.cli.serve import RAY_SETTINGS

# as `make serve` starts it, but for the token: a cluster of its own, for a while
DARKROOM_ENVIRONMENT = {**RAY_SETTINGS, "RAY_AUTH_MODE": "disabled"}

_STOP_S = 60.0


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


@dataclass(frozen=True, slots=True)
class Server:
    """A process that was started here, with all that it has started."""

    process: subprocess.Popen[bytes]

    def alive(self) -> bool:
        """Whether the process itself still runs."""
        return self.process.poll() is None

    def family(self) -> set[psutil.Process]:
        """The process and all that descend from it."""
        return _family(self.process.pid)


@contextlib.contextmanager
def server(command: Sequence[str], log: Path, folder: Path, environment: Mapping[str, str]) -> Iterator[Server]:
    """A server, for the length of the block.

    Args:
        command: that starts it.
        log: what it says goes there.
        folder: that it is started in.
        environment: variables besides this process's own.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C comes to this process, which then stops its servers in order
        )
        try:
            yield Server(process)
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
