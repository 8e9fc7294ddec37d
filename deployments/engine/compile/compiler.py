"""Compiles one graph ahead of time, in a process of its own: it takes minutes and all of Python's attention.

    python -m deployments.engine.compile.compiler SPEC_AS_JSON FOLDER NICENESS

torch.export and AOTInductor make a library whose weights are handed in when it is loaded. It lies in FOLDER under the
spec's name once it is whole; one process at a time compiles for a folder. Knows nothing of engines.
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

LIBRARY = "graph.so"
"""The compiled forward, in the folder of its name. Beside it, for CUDA, the kernels that it loads."""
SPEC = "spec.json"
"""What it is for."""
NO_COMPILER = 3
"""The process's status where the machine has no C++ compiler."""

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
    """The folder of the compiled forward, which is made unless it is there."""
    made = folder / spec.name
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made.exists():
            return made
        for left in folder.glob(f"{_UNFINISHED}*"):  # of a process that was killed
            shutil.rmtree(left)
        model = spec.new_model()
        with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder) as temporary, torch.no_grad():
            program = torch.export.export(spec.new_forward(model), spec.new_inputs(model).all)
            package = Path(temporary) / "graph.pt2"
            torch._inductor.aoti_compile_and_package(program, package_path=str(package), inductor_configs=_INDUCTOR)
            whole = Path(temporary) / spec.name
            _unpack(package, whole)
            (whole / SPEC).write_text(spec.json)
            whole.rename(made)
    return made


def _unpack(package: Path, folder: Path) -> None:
    """The library and what it loads, without its sources."""
    folder.mkdir()
    with zipfile.ZipFile(package) as archive:
        for name in archive.namelist():
            suffix = Path(name).suffix
            if suffix in (".so", ".cubin"):
                (folder / (LIBRARY if suffix == ".so" else Path(name).name)).write_bytes(archive.read(name))


def _has_compiler() -> bool:
    # not with the module, which engines import for its names: torch's compiler takes seconds to
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def name_cuda_home() -> None:
    """Set CUDA_HOME to the toolkit that torch finds, for the folders of which AOTInductor asks the variable alone.

    Its libraries are linked against the driver's, which a machine may have only as the toolkit's stub.
    """
    from torch.utils.cpp_extension import CUDA_HOME

    if CUDA_HOME is not None:
        os.environ.setdefault("CUDA_HOME", CUDA_HOME)


def _keep_to_plan(spec: GraphSpec) -> None:
    """No more of the GPU than the engine's plan leaves to this process: rather no library than no room for a step."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, compiling_bytes(spec.weights) / total), 0)


if __name__ == "__main__":
    os.nice(int(sys.argv[3]))
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    if not _has_compiler():
        sys.exit(NO_COMPILER)
    wanted = GraphSpec.from_json(sys.argv[1])
    if wanted.device == "cuda":
        name_cuda_home()
        _keep_to_plan(wanted)
    compile_graph(wanted, Path(sys.argv[2]))
