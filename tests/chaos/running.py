"""A whole service in processes of its own, whose parts can be found, killed, stopped and started again.

The demo models on the default configuration, with short leases, many attempts and no rates, so that what is tried takes
minutes and not hours. Only what descends from the process started here is ever touched.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import psutil
import yaml

from benchmarks.servers import DARKROOM_ENVIRONMENT, darkroom_config, free_port

ROOT = Path(__file__).parents[2]

_TITLE = re.compile(
    r"ray::(?:ServeReplica:darkroom:(?P<stage>\w+)|(?P<actor>ServeController|ProxyActor))"
    r"|\S+/(?P<daemon>gcs_server|raylet) "
)

LEASE_S = 10.0


def chaos_config(folder: Path, port: int, **changes: Mapping[str, Any]) -> dict[str, Any]:
    """serve_config.yaml for this; `changes` by section of the application's arguments."""
    content = darkroom_config(ROOT / "serve_config.yaml", folder, port, safety=True)
    arguments = content["applications"][0]["args"]
    arguments["jobs"] |= {
        "lease_s": LEASE_S,
        "heartbeat_s": 2.0,
        "max_attempts": 100,
        "stage_attempts": 100,
        "stage_retry_s": 600.0,
    }
    arguments["limits"] |= {"default_timeout_s": 1800.0}
    arguments["access"] |= {"requests": None, "generations": None}
    arguments["stages"]["router"]["replicas"] = 2
    for section, values in changes.items():
        arguments[section] |= values
    return content


class RunningService:
    """`serve run` in a folder of its own. config: as `chaos_config` makes it."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder = folder
        self._path = folder / "config.yaml"
        self._path.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
        self.url = f"http://127.0.0.1:{config['http_options']['port']}"
        self.database_url: str = config["applications"][0]["args"]["jobs"]["database_url"]
        self._process: psutil.Popen | None = None
        self._ending = Lock()

    @asynccontextmanager
    async def kept_up(self) -> AsyncIterator[None]:
        """Started, and started again whenever it has ended, as a machine's init does; /ready says when it serves.

        (Ray gives up when its first process doesn't answer within 30 s, which a busy machine can bring about.)
        """

        async def watch() -> None:
            while True:
                await asyncio.to_thread(self._start_if_ended)
                await asyncio.sleep(1)

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait({watching})

    def _start_if_ended(self) -> None:
        with self._ending:
            if not self._alive():
                self._start()

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _start(self) -> None:
        temporary = self._folder / "tmp"
        temporary.mkdir(exist_ok=True)
        folders = {"RAY_TMPDIR": str(self._folder), "TMPDIR": str(temporary)}
        environment = {**os.environ, **DARKROOM_ENVIRONMENT, **folders}
        command = [str(Path(sys.executable).with_name("serve")), "run", "--address", "local", str(self._path)]
        with (self._folder / "service.log").open("ab") as log:
            self._process = psutil.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def processes(self) -> list[psutil.Process]:
        """All of it that is alive, the first one included."""
        if self._process is None or not self._alive():
            return []
        return [self._process, *self._process.children(recursive=True)]

    def parts(self) -> dict[str, list[psutil.Process]]:
        """Replicas by their deployment's name, "ServeController", "ProxyActor", "gcs_server", "raylet"."""
        found: dict[str, list[psutil.Process]] = {}
        for process in self.processes():
            try:
                title = _TITLE.match(" ".join(process.cmdline()))
            except psutil.Error:  # it has ended since it was listed
                continue
            if title is not None:
                found.setdefault(title["stage"] or title["actor"] or title["daemon"], []).append(process)
        return found

    def kill(self) -> None:
        """kill -9 of everything at once: the machine lost its power."""
        with self._ending:
            family = self.processes()
            for process in family:
                _send(process, signal.SIGKILL)
            psutil.wait_procs(family, timeout=60)

    def stop(self) -> None:
        """In order; what hasn't ended after a while is ended."""
        family = self.processes()
        if family:
            _send(family[0], signal.SIGTERM)
            psutil.wait_procs(family[:1], timeout=60)
        for process in {*family, *self.processes()}:
            _send(process, signal.SIGKILL)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def new_service(folder: Path, **changes: Mapping[str, Any]) -> RunningService:
    """On a free port, with its data in `folder` (whose path must be short: Ray's sockets lie in it)."""
    return RunningService(folder, chaos_config(folder, free_port(), **changes))


def log_tail(folder: Path, lines: int = 40) -> str:
    """The end of the service's log."""
    path = folder / "service.log"
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""
