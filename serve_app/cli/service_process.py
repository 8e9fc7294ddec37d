"""Runs the service's own command in a session of its own, says when it is ready, and ends all that it has started.

Ray starts a dozen processes. A terminal's Ctrl-C or hang-up, and a signal to the process group, would reach each of
them, so that some end while others still need them. In a session of their own they get no signal but from here.
"""

import ctypes
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from urllib.parse import urlsplit

from serve_app.cli.output import say

# from the first signal: what the service has to end in order, and what is left has to end at all
_IN_ORDER_S, _TERMINATED_S = 20.0, 4.0
_POLL_S, _READY_POLL_S = 0.1, 0.5
_WATCH_S = 0.5  # while nothing happens: who waits shouldn't take a laptop's processor
_ANSWER_S = 60.0  # until there is a router, Serve keeps requests waiting; one that leaves is a line in its log
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a service is.

    Attributes:
        page: for people, with a slash at its end.
        ready: of GET /ready, as this machine reaches it.
    """

    page: str
    ready: str


def run_service(command: Sequence[str], environment: Mapping[str, str], addresses: Addresses) -> int:
    """Run a service until it ends, or until a signal or a closed terminal ends it. In the main thread.

    The first SIGINT, SIGTERM or SIGHUP lets it end in order, for 20 s; a second SIGINT or SIGTERM ends it at once.
    One that is ignored when this begins (nohup) stays so.

    Args:
        command: of the service.
        environment: of the command.
        addresses: of the service.

    Returns:
        The exit code: 0 after a signal, otherwise the command's own.
    """
    signals: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        signals.append(number)

    handled = [number for number in _STOPS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in handled}
    try:
        process = subprocess.Popen(  # noqa: S603  # the command is our own
            command, env=dict(environment), start_new_session=True, preexec_fn=_with_the_parent
        )
        threading.Thread(target=_announce, args=(addresses, process), name="announce", daemon=True).start()
        while process.poll() is None and not signals:
            time.sleep(_WATCH_S)
        if signals:
            _stop(process, signals)
            return 0
        _end_session(process.pid)
        return process.returncode if process.returncode >= 0 else 128 - process.returncode
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _with_the_parent() -> None:
    """In the new process: Ctrl-C's signal does what it does by itself, and the end of the parent is the end."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # (a shell's background jobs ignore it)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _stop(process: "subprocess.Popen[bytes]", signals: Sequence[int]) -> None:
    """End the service, in order if it does so in time and nobody is in a hurry."""
    _tell("Stopping: unfinished jobs are kept for the next start. Once more ends everything at once.")
    process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + _IN_ORDER_S
    while process.poll() is None and time.monotonic() < deadline and not _is_hurry(signals[1:]):
        time.sleep(_POLL_S)
    _end_session(process.pid)
    process.wait()


def _is_hurry(signals: Sequence[int]) -> bool:
    """Whether somebody has asked twice. A terminal that closes may send SIGHUP more than once by itself."""
    return any(number != signal.SIGHUP for number in signals)


def _end_session(leader: int) -> None:
    """End whatever is left of the session.

    Its leader by SIGKILL (Ray's handler of SIGTERM only prints a stack, and Ray has its own processes killed with it),
    the others by SIGTERM, and by SIGKILL what doesn't heed that.
    """
    for number, patience_s in ((signal.SIGTERM, _TERMINATED_S), (signal.SIGKILL, _TERMINATED_S)):
        for pid in _session(leader):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if pid == leader else number)
        deadline = time.monotonic() + patience_s
        while any(_session(leader)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)


def _session(leader: int) -> Iterator[int]:
    """The processes of a session that haven't ended, whoever their parents are now."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(ProcessLookupError, FileNotFoundError):
                if os.getsid(int(name)) == leader and not _has_ended(int(name)):
                    yield int(name)


def _has_ended(pid: int) -> bool:
    """Whether a process only waits for its parent to read its exit code (proc(5): state Z, X)."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")


def _announce(addresses: Addresses, process: "subprocess.Popen[bytes]") -> None:
    """Say when the service is ready, and before that once of each stage that has failed."""
    started, told = time.monotonic(), set[str]()
    while process.poll() is None:
        status, body = _get(addresses.ready)
        for name, stage in body.get("stages", {}).items():
            problem = f"{name}: {stage.get('reason')}"
            if stage.get("state") == "failed" and stage.get("reason") and problem not in told:
                told.add(problem)
                _tell(f"Not ready: {problem}")
        if status == http.client.OK:
            _tell(
                f"Ready in {time.monotonic() - started:.0f} s. Page: {addresses.page}   "
                f"API: {addresses.page}docs   Ctrl-C stops everything."
            )
            return
        time.sleep(_READY_POLL_S)


def _get(url: str) -> tuple[int, dict[str, dict[str, dict[str, str]]]]:
    """The status and the JSON object of an answer; 0 and an empty one while nobody answers."""
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        # this machine's own service, whatever name its certificate is for
        context = ssl._create_unverified_context()  # noqa: S323
        connection = http.client.HTTPSConnection(parts.netloc, timeout=_ANSWER_S, context=context)
    else:
        connection = http.client.HTTPConnection(parts.netloc, timeout=_ANSWER_S)
    try:
        connection.request("GET", parts.path)
        response = connection.getresponse()
        body = json.loads(response.read())
        return response.status, body if isinstance(body, dict) else {}
    except (OSError, http.client.HTTPException, ValueError):
        return 0, {}
    finally:
        connection.close()


def _tell(message: str) -> None:
    with suppress(OSError):  # of a terminal that was closed
        say(message)
        sys.stderr.flush()
