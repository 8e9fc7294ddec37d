"""Compiles one graph ahead of time, in a process of its own: it takes minutes, and tracing holds Python's lock.

    python -m deployments.engine.compile.compiler SPEC_AS_JSON FOLDER NICENESS

torch.export and AOTInductor make a library that is given its weights when it is loaded. It appears in FOLDER under the
spec's name once it is whole; one process at a time compiles for a folder.
"""

import fcntl
import logging
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from deployments.engine.compile.spec import GraphSpec
from deployments.engine.memory.footprint import compiling_bytes
from deployments.engine.unet import UnetForward

LIBRARY = "graph.so"
"""File name of a compiled forward in its folder. For CUDA the kernels that it loads lie beside it."""
SPEC = "spec.json"
"""File name of the GraphSpec that it was compiled for."""
NO_COMPILER = 3
"""Exit status where the machine has no C++ compiler."""

_UNFINISHED = "compiling-"
_INDUCTOR = {
    # the weights are the engine's own, which may fill them with another checkpoint's
    "aot_inductor.package_constants_in_so": False,
    # all of them: by default the values of short ones, the last bias for example, become part of the code
    "always_keep_tensor_constants": True,
    # as many threads as whoever calls has, not as many as this process
    "cpp.dynamic_threads": True,
}


def compile_graph(spec: GraphSpec, folder: Path) -> Path:
    """The folder of the compiled forward; compiles it unless it is there."""
    graph = folder / spec.name
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if graph.exists():
            return graph
        for leftover in folder.glob(f"{_UNFINISHED}*"):  # of a process that was killed
            shutil.rmtree(leftover)
        unet = spec.new_unet()
        with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder) as temporary, torch.no_grad():
            program = torch.export.export(UnetForward(unet), spec.new_inputs(unet).all)
            package = Path(temporary) / "graph.pt2"
            torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=_INDUCTOR)
            unpacked = Path(temporary) / spec.name
            _unpack(package, unpacked)
            (unpacked / SPEC).write_text(spec.json, encoding="utf-8")
            unpacked.rename(graph)
    return graph


def _unpack(package: Path, folder: Path) -> None:
    """The library and what it loads, without its sources."""
    folder.mkdir()
    with zipfile.ZipFile(package) as archive:
        for name in archive.namelist():
            suffix = Path(name).suffix
            if suffix in (".so", ".cubin"):
                (folder / (LIBRARY if suffix == ".so" else Path(name).name)).write_bytes(archive.read(name))


def _has_compiler() -> bool:
    # imported here: engines import this module for its constants, and torch's compiler takes seconds to import
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def set_cuda_home() -> None:
    """Set CUDA_HOME to the toolkit that torch finds, unless it is set: AOTInductor looks for libraries there alone.

    Graphs are linked against the driver's library, which a machine may have only as the toolkit's stub.
    """
    from torch.utils.cpp_extension import CUDA_HOME

    if CUDA_HOME is not None:
        os.environ.setdefault("CUDA_HOME", CUDA_HOME)


def _limit_memory(spec: GraphSpec) -> None:
    """Take no more of the GPU than the engine's plan leaves to this process."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, compiling_bytes(spec.weight_bytes) / total), 0)


if __name__ == "__main__":
    os.nice(int(sys.argv[3]))
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    if not _has_compiler():
        sys.exit(NO_COMPILER)
    graph_spec = GraphSpec.from_json(sys.argv[1])
    if graph_spec.device == "cuda":
        set_cuda_home()
        _limit_memory(graph_spec)
    compile_graph(graph_spec, Path(sys.argv[2]))
