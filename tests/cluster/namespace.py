"""Processes in namespaces of their own (PID, mount, network): none sees a process of the machine or takes its ports.

Ray ends "its" processes by their names over everything it sees, and one machine may have several clusters.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]

_PROGRAMS = ("unshare", "nsenter", "ip", "mount", "bash")
# The first process: bash takes up orphans. Its standard input ends with the process that started it, and all with it.
_FIRST = 'mkdir -p /tmp/ray && mount --bind "$0" /tmp/ray && ip link set lo up && echo ready && read -r _'


class NoNamespaces(RuntimeError):
    """This machine lets nobody make namespaces, or not this user."""


class Namespace:
    """Runs commands in one set of namespaces.

    Args:
        folder: of its files; short, because sockets lie in it. `/tmp/ray` is a folder in it.
        environment: of every command, beside this process's own.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self._environment = {**os.environ, **environment, "PYTHONPATH": str(ROOT)}
        self._unshare = _unshared(folder)
        self._started: list[subprocess.Popen[bytes]] = []
        [self.first] = psutil.Process(self._unshare.pid).children()
        self._enter = ["nsenter", "-t", str(self.first.pid), "-m", "-n", "-p", *_AS_USER[1], "env", "-C", str(ROOT)]

    def run(self, *command: str | Path, timeout_s: float = 300.0) -> str:
        """A command's output, when it has ended. Raises CommandFailed."""
        done = subprocess.run(
            [*self._enter, *command],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def start(self, *command: str | Path, log: str) -> None:
        """Start a command that ends with the namespaces; its output goes to a file in the folder."""
        with (self.folder / log).open("ab") as output:
            process = subprocess.Popen(
                [*self._enter, *command],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self._started.append(process)

    @contextmanager
    def outside(self, *command: str | Path) -> Iterator[None]:
        """A command beside the namespaces, for the length of the block."""
        process = subprocess.Popen(command, cwd=ROOT, env=self._environment, stdin=subprocess.DEVNULL)
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)

    def processes(self) -> list[psutil.Process]:
        """Those in the namespaces, with the ids that they have outside."""
        own = _pid_namespace(self.first.pid)
        return [process for process in psutil.process_iter() if _pid_namespace(process.pid) == own]

    def end(self) -> None:
        """End everything in the namespaces, which the kernel does with their first process."""
        if self.first.is_running():
            self.first.send_signal(signal.SIGKILL)
        self._unshare.communicate(timeout=60)
        for process in self._started:
            process.wait(60)


def _unshared(folder: Path) -> subprocess.Popen[str]:
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing or sys.platform != "linux":
        raise NoNamespaces(f"namespaces need Linux and {', '.join(missing or _PROGRAMS)}")
    ray = folder / "ray"
    ray.mkdir()
    process = subprocess.Popen(
        [
            "unshare",
            "-n",
            "-m",
            "-p",
            "-f",
            "--mount-proc",
            "--kill-child=KILL",
            *_AS_USER[0],
            "bash",
            "-c",
            _FIRST,
            ray,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    answer = process.stdout.readline().strip()
    if answer != "ready":
        process.kill()
        process.communicate()
        raise NoNamespaces(f"unshare: {answer or process.returncode}")
    return process


# of unshare and of nsenter: without root, as root of a namespace of users
_AS_USER: tuple[list[str], list[str]] = (
    ([], []) if os.geteuid() == 0 else (["--map-root-user"], ["-U", "--preserve-credentials"])
)


def _pid_namespace(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:  # it has ended, or is another user's
        return None


@contextmanager
def namespace(folder: Path, environment: Mapping[str, str]) -> Iterator[Namespace]:
    """Namespaces for the length of the block. Raises NoNamespaces."""
    space = Namespace(folder, environment)
    try:
        yield space
    finally:
        space.end()
