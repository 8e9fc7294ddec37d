"""A real Postgres for the tests: on a port and in a folder of its own, gone afterwards."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

MISSING = "no Postgres here: install Debian's package `postgresql` (or put initdb and postgres on the PATH)"

START_S = 120.0


def binaries() -> Path | None:
    """The folder of Postgres' programs, Debian's of the newest version; None where there is none."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    if (on_path := shutil.which("initdb")) is not None:
        folders.append(Path(on_path).resolve().parent)
    return next((folder for folder in reversed(folders) if (folder / "postgres").exists()), None)


@dataclass
class Postgres:
    """A server that can be stopped and started; `url` of one of its databases."""

    bin: Path
    data: Path
    port: int
    user: str | None
    process: subprocess.Popen[bytes] | None = None

    def url(self, database: str) -> str:
        return f"postgresql+asyncpg://darkroom@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """A new, empty database's URL."""
        self._client("createdb", database)
        return self.url(database)

    def drop(self, database: str) -> None:
        self._client("dropdb", "--if-exists", "--force", database)

    def start(self) -> None:
        """Returns when it answers."""
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if (
                self.process is None or self.process.poll() is not None
            ):  # a killed one's last processes may be in the way
                self.process = self._spawn()
            if subprocess.run([self.bin / "pg_isready", "-q", "-t", "1", *self._address()]).returncode == 0:
                return
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.2)
        raise TimeoutError(f"postgres didn't start within {START_S:g} s")

    def kill(self) -> None:
        """At once, as a crash ends it; its other processes notice and end too."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Without waiting for its clients."""
        self._end(signal.SIGINT)

    def _spawn(self) -> subprocess.Popen[bytes]:
        options = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off")
        command = [self.bin / "postgres", "-D", self.data, "-p", str(self.port), *(f"--{option}" for option in options)]
        return subprocess.Popen(
            [*_as(self.user), *command],
            cwd=self.data,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _end(self, by: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(by)
            self.process.wait(START_S)
            self.process = None

    def _client(self, program: str, *arguments: str) -> None:
        subprocess.run([self.bin / program, *self._address(), "-U", "darkroom", *arguments], check=True, timeout=60)

    def _address(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(self.port)]


@contextmanager
def running_postgres(folder: Path) -> Iterator[Postgres]:
    """`folder`: of Postgres' programs."""
    # a folder that others may enter: Postgres refuses to run as root, so it is another who must get there
    root = Path(tempfile.mkdtemp(prefix="darkroom-postgres-"))
    user: str | None = None
    try:
        if os.geteuid() == 0:
            user = next(name for name in ("postgres", "nobody") if name in {entry.pw_name for entry in pwd.getpwall()})
            shutil.chown(root, user)
        data = root / "data"
        options = ("-U", "darkroom", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        subprocess.run(
            [*_as(user), folder / "initdb", "-D", data, *options],
            cwd=root,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = Postgres(folder, data, port, user)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(root)


def _as(user: str | None) -> list[str]:
    """What goes before a command that runs as another user.

    Not Popen's `user`: it forks this process with all of its threads, and what the libraries here run in a forked child
    (gRPC's handlers among them) has aborted it before it became the command.
    """
    if user is None:
        return []
    entry = pwd.getpwnam(user)
    return ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
