"""Which forwards are compiled: those that were taken often enough, one at a time, while steps go on without.

What was compiled stays in a folder, for later engines and for others on this machine. Knows what forwards are for and
where they lie; nothing of calling them (compiled_forwards.py), lanes or checkpoints.
"""

import logging
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from deployments.engine.compile.compiler import NO_COMPILER
from deployments.engine.compile.spec import GraphSpec
from deployments.engine.config import CompileSettings
from deployments.engine.errors import CheckpointError

logger = logging.getLogger(__name__)

_LAST_WORDS = 2000  # characters of what a compiler that failed said
_FAILURES = 2  # of so many first ones the rest needn't be tried


class Graphs:
    """The compiled forwards of one engine. Used by its thread; compiles in another process."""

    def __init__(self, settings: CompileSettings) -> None:
        """Raises CheckpointError if the folder can't be made, or others could put libraries into it."""
        self.settings = settings
        self._folder = _private(Path(settings.folder).expanduser())
        self._taken: Counter[GraphSpec] = Counter()
        self._made: dict[GraphSpec, Future[Path]] = {}
        self._refused: set[GraphSpec] = set()
        self._hopeless = False
        self._compiler = ThreadPoolExecutor(1, "graphs")
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closed = False

    @property
    def compiled(self) -> tuple[str, ...]:
        """What is compiled, as people say it."""
        made = list(self._made.items())
        return tuple(sorted(str(spec) for spec, future in made if _succeeded(future) and spec not in self._refused))

    @property
    def compiling(self) -> int:
        """Forwards that are being compiled, or wait for it."""
        return sum(not future.done() for future in list(self._made.values()))

    @property
    def failures(self) -> int:
        """Forwards that couldn't be compiled, didn't do as the model does, or failed again and again."""
        failed = [future for future in list(self._made.values()) if future.done() and not _succeeded(future)]
        return len(failed) + len(self._refused)

    def made(self, spec: GraphSpec) -> Path | None:
        """The folder of a compiled forward. Where there is none: asked for often enough, it will be made."""
        future = self._made.get(spec)
        if future is None:
            future = self._begun(spec)
        if future is None or not _succeeded(future) or spec in self._refused:
            return None
        return future.result()

    def refuse(self, spec: GraphSpec, why: str) -> None:
        """Compiled, but not to be used as long as this process lives. Later ones may."""
        logger.error("the compiled forward for %s isn't used any more: %s", spec, why)
        self._refused.add(spec)

    def discard(self, spec: GraphSpec, why: str) -> None:
        """Refuse it, and throw it away, so that a later engine compiles it anew."""
        self.refuse(spec, why)
        shutil.rmtree(self._folder / spec.name, ignore_errors=True)

    def close(self) -> None:
        """End the compiler."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.terminate()
        self._compiler.shutdown(cancel_futures=True)

    def _begun(self, spec: GraphSpec) -> "Future[Path] | None":
        self._taken[spec] += 1
        if self._taken[spec] == 1 and (self._folder / spec.name).exists():
            self._made[spec] = Future()
            self._made[spec].set_result(self._folder / spec.name)
        elif (
            self._taken[spec] >= self.settings.after_steps
            and len(self._made) < self.settings.most
            and not self._hopeless
        ):
            self._made[spec] = self._compiler.submit(self._compile, spec)
        return self._made.get(spec)

    def _compile(self, spec: GraphSpec) -> Path:
        logger.info("compiling the forward for %s", spec)
        command = [sys.executable, "-m", "deployments.engine.compile.compiler", spec.json, str(self._folder)]
        command.append(str(self.settings.niceness))
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        own["TORCHINDUCTOR_COMPILE_THREADS"] = str(self.settings.threads)
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine was stopped")
            self._process = subprocess.Popen(  # noqa: S603  # its arguments are our own
                command, env={**os.environ, **own}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
        _, said = self._process.communicate()
        if self._process.returncode:
            if not self._closed:
                self._give_up(spec, self._process.returncode, said.decode(errors="replace")[-_LAST_WORDS:])
            raise RuntimeError(f"the compiler ended with {self._process.returncode}")
        logger.info("compiled the forward for %s", spec)
        return self._folder / spec.name

    def _give_up(self, spec: GraphSpec, status: int, said: str) -> None:
        """On one forward, and on all where there is no compiler or none of the first ones could be compiled."""
        if status == NO_COMPILER:
            self._hopeless = True
            logger.warning("steps go on without compiled forwards: this machine has no C++ compiler (g++, or $CXX)")
            return
        logger.error("the forward for %s can't be compiled, steps go on without: %s", spec, said)
        others = [future for other, future in list(self._made.items()) if other != spec]
        self._hopeless = not any(map(_succeeded, others)) and sum(one.done() for one in others) + 1 >= _FAILURES


def _succeeded(future: "Future[Path]") -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _private(folder: Path) -> Path:
    """What lies there is run as code."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise CheckpointError(f"engine.compile.folder: {error}; name another, or compile nothing (null)") from None
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CheckpointError(f"{folder}: what is compiled there runs here, so nobody else may write to it")
    return folder
