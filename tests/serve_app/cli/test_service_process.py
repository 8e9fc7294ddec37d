"""The process around a service: what it says, and that nothing outlives it, however it is ended.

The service here is a small program whose child is like Ray's: in a process group of its own, deaf to SIGTERM, without
a parent once the service has ended.
"""

import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serve_app.cli.service_process import _session
from tests.ray_cluster import free_port
from tests.serve_app.cli.command_line import ROOT

IN_ORDER, STUBBORN = "raise SystemExit", "pass"  # what a service does at Ctrl-C's signal

CHILD = """
import os, signal, time
os.setpgrp()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("child runs", flush=True)
time.sleep(600)
"""
SERVICE = """
import http.server, json, os, subprocess, sys, threading, time
print("service", os.getpid(), flush=True)
subprocess.Popen([sys.executable, "-c", {child!r}])
answers = iter([{{"SD15": {{"state": "failed", "reason": "no weights"}}}}, {{"SD15": {{"state": "starting"}}}}])
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        stages = next(answers, None)
        self.send_response(200 if stages is None else 503)
        self.end_headers()
        self.wfile.write(json.dumps({{"stages": stages or {{}}}}).encode())
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", {port}), Ready)
threading.Thread(target=server.serve_forever, daemon=True).start()
while True:
    try:
        time.sleep(600)
    except KeyboardInterrupt:
        print("asked to end", flush=True)
        {on_interrupt}
"""
AROUND = """
import os, sys
from serve_app.cli.service_process import Addresses, run_service
url = sys.argv[2]
sys.exit(run_service([sys.executable, "-c", sys.argv[1]], os.environ, Addresses(url + "/", url + "/ready")))
"""


class Around:
    """The process around a service, and what both have said so far."""

    def __init__(self, folder: Path, service: str, url: str, before: Callable[[], None] | None = None) -> None:
        self.url = url
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", AROUND, service, url],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
                start_new_session=before is None,
                preexec_fn=before,
            )

    @property
    def said(self) -> str:
        return self._log.read_text()

    def says(self, pattern: str) -> re.Match[str]:
        """Wait for a text."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if match := re.search(pattern, self.said):
                return match
            time.sleep(0.05)
        raise AssertionError(self.said)

    def left(self) -> list[int]:
        """What hasn't ended of the service's session."""
        return list(_session(int(self.says(r"service (\d+)")[1])))

    def ended(self) -> int:
        """Wait for the end, after which nothing is left."""
        code = self.process.wait(60)
        assert self.left() == []
        return code


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Around]]:
    """Starts a service with a child and waits until both run; ends what a failed test leaves."""
    started: list[Around] = []

    def start(on_interrupt: str = IN_ORDER, before: Callable[[], None] | None = None) -> Around:
        port = free_port()
        service = SERVICE.format(child=CHILD, port=port, on_interrupt=on_interrupt)
        around = Around(tmp_path, service, f"http://127.0.0.1:{port}", before)
        started.append(around)
        around.says("child runs")
        return around

    yield start
    for around in started:
        for pid in (around.process.pid, *around.left()):
            if around.process.poll() is None or pid != around.process.pid:
                os.kill(pid, signal.SIGKILL)
        around.process.wait()


def test_says_what_failed_and_when_the_service_is_ready(start: Callable[..., Around]) -> None:
    around = start()
    around.says(rf"Ready in \d+ s. Page: {around.url}/   API: {around.url}/docs   Ctrl-C stops everything.\n")
    assert around.said.count("Not ready: SD15: no weights\n") == 1
    around.process.send_signal(signal.SIGINT)
    around.ended()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["process", "group"])
def test_a_signal_ends_the_service_in_order(
    start: Callable[..., Around], number: signal.Signals, send: Callable[[int, int], None]
) -> None:
    around = start()
    assert len(around.left()) == 2
    send(around.process.pid, number)
    assert around.ended() == 0
    assert around.said.count("asked to end") == 1


def test_a_second_ctrl_c_ends_it_at_once(start: Callable[..., Around]) -> None:
    around = start(STUBBORN)
    around.process.send_signal(signal.SIGINT)
    around.says("asked to end")
    around.process.send_signal(signal.SIGINT)
    assert around.ended() == 0


def test_a_terminal_that_closes(start: Callable[..., Around]) -> None:
    main, terminal = pty.openpty()

    def in_the_terminal() -> None:
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    around = start(before=in_the_terminal)
    os.close(terminal)
    os.close(main)
    assert around.ended() == 0


def test_what_nohup_ignores_stays_ignored(start: Callable[..., Around]) -> None:
    def ignoring() -> None:
        os.setsid()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    around = start(before=ignoring)
    around.process.send_signal(signal.SIGHUP)
    around.says("Ready in")
    around.process.send_signal(signal.SIGTERM)
    assert around.ended() == 0


def test_a_shell_s_background_job_is_ended_by_sigterm(start: Callable[..., Around]) -> None:
    def in_the_background() -> None:
        os.setsid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    around = start(before=in_the_background)
    around.process.send_signal(signal.SIGTERM)
    assert around.ended() == 0
    assert "asked to end" in around.said


def test_the_service_goes_with_a_killed_one_around_it(start: Callable[..., Around]) -> None:
    around = start()
    service = int(around.says(r"service (\d+)")[1])
    around.process.kill()
    around.process.wait()
    deadline = time.monotonic() + 30
    while service in around.left():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("code", "expected"), [("raise SystemExit(3)", 3), ("os.kill(os.getpid(), 9)", 137)])
def test_a_service_that_ends_by_itself_takes_its_children_along(tmp_path: Path, code: str, expected: int) -> None:
    service = "import os, subprocess, sys\nprint('service', os.getpid(), flush=True)\n"
    service += f"subprocess.Popen([sys.executable, '-c', {CHILD!r}])\n{code}"
    around = Around(tmp_path, service, f"http://127.0.0.1:{free_port()}")
    assert around.ended() == expected
