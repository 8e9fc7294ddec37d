"""The process that compiles: what it needs of the machine."""

from pathlib import Path

import pytest
from torch._inductor.cpp_builder import _transform_cuda_paths
from torch.utils import cpp_extension

from deployments.engine.compile.compiler import set_cuda_home


def _linked(library: Path) -> list[str]:
    """The folders that AOTInductor looks for libraries in."""
    paths = [str(library)]
    _transform_cuda_paths(paths)
    return paths


def test_a_toolkit_that_nobody_names_has_its_stubs_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "lib64"
    (library / "stubs").mkdir(parents=True)
    (library / "libcudart_static.a").touch()
    monkeypatch.setenv("CUDA_HOME", "")
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)  # as where torch finds none
    set_cuda_home()
    assert _linked(library) == [str(library)]
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    set_cuda_home()
    assert _linked(library) == [str(library), str(library / "stubs")]


def test_a_toolkit_that_somebody_names_stays_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "named" / "lib64"
    (library / "stubs").mkdir(parents=True)
    (library / "libcudart_static.a").touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "named"))
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path / "other"))
    set_cuda_home()
    assert _linked(library) == [str(library), str(library / "stubs")]
