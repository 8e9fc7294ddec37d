"""The compiled graphs of an engine: kept in a folder, for later engines and for others on this machine.

A forward that was taken often enough is compiled in another process, one at a time, while steps go on without it.
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

_STDERR_SHOWN = 2000  # last characters of what a compiler that failed wrote
_MOST_FAILURES = 2  # where the first ones of so many all failed, no other is compiled


class GraphCache:
    """Used by the engine's thread."""

    def __init__(self, settings: CompileSettings) -> None:
        """Raises CheckpointError if the folder can't be made, or others could put libraries into it."""
        self._settings = settings
        self._folder = _private_folder(Path(settings.folder).expanduser())
        self._uses: Counter[GraphSpec] = Counter()
        self._graphs: dict[GraphSpec, Future[Path]] = {}
        self._refused: set[GraphSpec] = set()
        self._hopeless = False
        self._compiler = ThreadPoolExecutor(1, "graphs")
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closed = False

    @property
    def compiled(self) -> tuple[str, ...]:
        """What is compiled, for people."""
        graphs = list(self._graphs.items())
        return tuple(sorted(str(spec) for spec, graph in graphs if _succeeded(graph) and spec not in self._refused))

    @property
    def compiling(self) -> int:
        """Forwards that are being compiled, or wait for it."""
        return sum(not graph.done() for graph in list(self._graphs.values()))

    @property
    def failures(self) -> int:
        """Forwards that couldn't be compiled, whose output differed from the UNet's, or that failed repeatedly."""
        failed = [graph for graph in list(self._graphs.values()) if graph.done() and not _succeeded(graph)]
        return len(failed) + len(self._refused)

    def find(self, spec: GraphSpec) -> Path | None:
        """The folder of a compiled graph. None if there is none yet; asking often enough has it compiled."""
        graph = self._graphs.get(spec)
        if graph is None:
            graph = self._count_use(spec)
        if graph is None or not _succeeded(graph) or spec in self._refused:
            return None
        return graph.result()

    def refuse(self, spec: GraphSpec, why: str) -> None:
        """Don't use a graph for as long as this process lives. Later processes may."""
        logger.error("the compiled forward for %s isn't used any more: %s", spec, why)
        self._refused.add(spec)

    def discard(self, spec: GraphSpec, why: str) -> None:
        """Refuse a graph and delete it, so that a later engine compiles it anew."""
        self.refuse(spec, why)
        shutil.rmtree(self._folder / spec.name, ignore_errors=True)

    def close(self) -> None:
        """End the compiler."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.terminate()
        self._compiler.shutdown(cancel_futures=True)

    def _count_use(self, spec: GraphSpec) -> "Future[Path] | None":
        self._uses[spec] += 1
        if self._uses[spec] == 1 and (self._folder / spec.name).exists():
            self._graphs[spec] = Future()
            self._graphs[spec].set_result(self._folder / spec.name)
        elif (
            self._uses[spec] >= self._settings.after_steps
            and len(self._graphs) < self._settings.most
            and not self._hopeless
        ):
            self._graphs[spec] = self._compiler.submit(self._compile, spec)
        return self._graphs.get(spec)

    def _compile(self, spec: GraphSpec) -> Path:
        logger.info("compiling the forward for %s", spec)
        command = [sys.executable, "-m", "deployments.engine.compile.compiler", spec.json, str(self._folder)]
        command.append(str(self._settings.niceness))
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = str(self._settings.threads)
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine was stopped")
            self._process = subprocess.Popen(  # noqa: S603  # its arguments are our own
                command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
        _, stderr = self._process.communicate()
        if self._process.returncode:
            if not self._closed:
                self._give_up(spec, self._process.returncode, stderr.decode(errors="replace")[-_STDERR_SHOWN:])
            raise RuntimeError(f"the compiler ended with status {self._process.returncode}")
        logger.info("compiled the forward for %s", spec)
        return self._folder / spec.name

    def _give_up(self, spec: GraphSpec, status: int, stderr: str) -> None:
        """On one forward, and on all where there is no compiler or none of the first ones could be compiled."""
        if status == NO_COMPILER:
            self._hopeless = True
            logger.warning("steps go on without compiled forwards: this machine has no C++ compiler (g++, or $CXX)")
            return
        logger.error("the forward for %s can't be compiled, steps go on without it: %s", spec, stderr)
        others = [graph for other, graph in list(self._graphs.items()) if other != spec]
        failed = sum(graph.done() for graph in others) + 1
        self._hopeless = not any(map(_succeeded, others)) and failed >= _MOST_FAILURES


def _succeeded(graph: "Future[Path]") -> bool:
    return graph.done() and not graph.cancelled() and graph.exception() is None


def _private_folder(folder: Path) -> Path:
    """The folder, made if it isn't there. What lies in it is run as code, so only its owner may write to it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise CheckpointError(f"engine.compile.folder: {error}; name another, or compile nothing (null)") from None
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CheckpointError(
            f"engine.compile.folder: {folder} can be written by others, and what lies there runs here as code: "
            f"chmod 700 it, or name another"
        )
    return folder
