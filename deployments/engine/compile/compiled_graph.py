"""Loads and calls a compiled graph without holding Python's lock: event loops and other rows' threads go on meanwhile.

torch's own loaders (aoti_load_package, AOTIModelContainerRunnerCpu) hold it for the whole forward: torch 2.13, ten
forwards of 85 ms, and a thread that wakes each millisecond woke ten times. So the library is called by its C interface
(torch/csrc/inductor/aoti_runtime/interface.h). Weights are read where the UNet has them; what is copied into them later
holds from the next call on.
"""

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch._C import _aoti

from deployments.engine.compile.compiler import LIBRARY

_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype, _new_capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class _Constant(ctypes.Structure):
    """AOTInductorConstantMapEntry."""

    _fields_ = (("name", ctypes.c_char_p), ("handle", ctypes.c_void_p))


class CompiledGraph:
    """A forward of fixed shapes. May be called by as many threads at once as `copies` says; more wait."""

    def __init__(self, folder: Path, weights: Mapping[str, torch.Tensor], device: torch.device, copies: int) -> None:
        """Load a compiled library.

        Args:
            folder: of the library, as compiler.py makes it.
            weights: by the names that they were exported with. They must not move while the graph is used.
            device: of the weights and the inputs.
            copies: of the graph's own state, one for each thread that calls it at once.

        Raises:
            OSError, KeyError, RuntimeError: the library isn't one for these weights.
        """
        self._container = ctypes.c_void_p()
        self._weights: list[int] = []
        self._library = ctypes.CDLL(str(folder / LIBRARY))
        self._call(
            "CreateWithDevice",
            ctypes.byref(self._container),
            ctypes.c_size_t(copies),
            str(device).encode(),
            str(folder).encode(),
            container=False,
        )
        self._hand_in(weights)
        self._inputs, self._outputs = self._number_of("Inputs"), self._number_of("Outputs")

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The outputs for inputs of the shapes, strides and types that it was compiled for, which aren't checked.

        Raises RuntimeError; what the library said of it went to the process's standard error.
        """
        if len(tensors) != self._inputs:
            raise RuntimeError(f"{len(tensors)} inputs for a graph with {self._inputs}")
        handles = _handles(tensors)  # are the library's once it is called
        inputs = (ctypes.c_void_p * len(handles))(*handles)
        outputs = (ctypes.c_void_p * self._outputs)()
        stream = None
        if tensors[0].is_cuda:
            stream = ctypes.c_void_p(torch.cuda.current_stream(tensors[0].device).cuda_stream)
        self._call("Run", inputs, ctypes.c_size_t(len(tensors)), outputs, ctypes.c_size_t(len(outputs)), stream, None)
        return [_stolen(output or 0) for output in outputs]

    def __del__(self) -> None:
        if self._container:
            self._call("Delete")
            self._container = ctypes.c_void_p()
        for handle in self._weights:  # of which the library only borrowed
            _stolen(handle)
        self._weights = []

    def _hand_in(self, weights: Mapping[str, torch.Tensor]) -> None:
        names = self._constant_names()
        # torch never drops its own references to them: these keep no memory
        self._weights = _handles([_borrowed(weights[original]) for _, original in names])
        pairs = (_Constant * len(names))(
            *(_Constant(name, handle) for (name, _), handle in zip(names, self._weights, strict=True))
        )
        self._call(
            "UpdateUserManagedConstantBufferPairs",
            pairs,
            ctypes.c_size_t(len(names)),
            ctypes.c_bool(False),
            ctypes.c_bool(True),
        )

    def _constant_names(self) -> list[tuple[bytes, str]]:
        """Each constant's name in the library, and the one it was exported with."""
        names = []
        for index in range(self._number_of("Constants")):
            name, original = ctypes.c_char_p(), ctypes.c_char_p()
            self._call("GetConstantName", ctypes.c_size_t(index), ctypes.byref(name))
            self._call("GetConstantOriginalFQN", ctypes.c_size_t(index), ctypes.byref(original))
            names.append((name.value or b"", (original.value or b"").decode()))
        return names

    def _number_of(self, what: str) -> int:
        number = ctypes.c_size_t()
        self._call(f"GetNum{what}", ctypes.byref(number))
        return number.value

    def _call(self, function: str, *arguments: Any, container: bool = True) -> None:
        call = getattr(self._library, f"AOTInductorModelContainer{function}")
        if call(*([self._container] if container else []), *arguments):
            raise RuntimeError(f"AOTInductorModelContainer{function} failed")


def _handles(tensors: Sequence[torch.Tensor]) -> list[int]:
    """Addresses of new references to the tensors."""
    capsules = _aoti.unsafe_alloc_void_ptrs_from_tensors(list(tensors))
    return [_get_pointer(capsule, None) for capsule in capsules]


def _borrowed(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory, which may be freed meanwhile."""
    storage = torch._C._construct_storage_from_data_pointer(tensor.data_ptr(), tensor.device, int(tensor.nbytes))
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(storage, 0, tensor.shape, tensor.stride())


def _stolen(handle: int) -> torch.Tensor:
    """The tensor that a handle refers to, which is none any more."""
    # torch's function for one handle keeps its reference
    return _aoti.alloc_tensors_by_stealing_from_void_ptrs([_new_capsule(handle, None, None)])[0]
