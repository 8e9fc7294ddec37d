"""Opens the device of this process, in the thread that will own it.

Torch's thread count and gradient mode are per thread, and OpenMP counts every thread that has used it: all torch work
of a process, loading included, belongs in the one thread that calls `open_device`. The exceptions are threads that are
told to use no other: sampler tables are traced in one (engine.py), the parts of a large forward run in some
(row_threads.py).
"""

import os
import sys
from dataclasses import dataclass

import torch

from deployments.engine.config import DeviceSettings, EngineSettings
from deployments.engine.errors import DeviceUnavailable
from deployments.engine.heap import keep_freed_memory
from deployments.engine.row_threads import RowThreads


@dataclass(frozen=True, slots=True)
class Device:
    """A device that is open, the type that its weights and activations have, and the threads for a large forward."""

    torch_device: torch.device
    dtype: torch.dtype
    row_threads: RowThreads

    def probe(self) -> None:
        """Touch the device. Raises torch.AcceleratorError if it was lost."""
        if self.torch_device.type == "cuda":
            torch.zeros(1, device=self.torch_device).item()


def open_device(settings: DeviceSettings) -> Device:
    """Set this thread up for inference on the device that `settings` name.

    Raises DeviceUnavailable if CUDA is asked for and there is none.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailable(
            "device is 'cuda', but torch finds no CUDA device; set device: auto or cpu to run on the processor"
        )
    on_cuda = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
    threads = settings.cpu_threads or _processors()
    # first asked: a thread that wasn't takes, at its first operation, the number that any thread was last told
    torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    if on_cuda:
        torch.cuda.set_device(0)
        torch.cuda.set_per_process_memory_fraction(settings.memory_fraction, 0)
    dtype = dtype_of(settings, on_cuda=on_cuda)
    if dtype == torch.float32:
        # torch's convolutions on CUDA round float32 to TF32's 10 bits by default. Beside 16-bit weights that may stay:
        # float32 is there for its range (a decode that overflows), and TF32 is no coarser than float16
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    if on_cuda:
        return Device(torch.device("cuda", 0), dtype, RowThreads(1))
    keep_freed_memory()
    return Device(torch.device("cpu"), dtype, RowThreads(threads))


def _processors() -> int:
    """Those that this process may run on. Not torch's own choice: Ray sets OMP_NUM_THREADS to the CPUs it books."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def dtype_of(settings: DeviceSettings, *, on_cuda: bool) -> torch.dtype:
    """The type of weights and activations."""
    name = settings.dtype if settings.dtype != "auto" else ("float16" if on_cuda else "float32")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def vae_dtype(settings: EngineSettings, dtype: torch.dtype) -> torch.dtype:
    """The type of a VAE beside a UNet of `dtype`."""
    return dtype if settings.vae.dtype == "auto" else getattr(torch, settings.vae.dtype)
