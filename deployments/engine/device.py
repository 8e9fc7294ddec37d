"""The device of this process, opened in the thread that owns it, and its memory.

Torch's thread count and gradient mode are per thread, and OpenMP counts every thread that has used it: all torch work
of a process, loading included, belongs in the one thread that calls `open_device`. Exceptions are threads limited to
one OpenMP thread: for sampler tables (engine.py), files (request_files.py) and parts of a forward (row_threads.py).
"""

import ctypes
import gc
import logging
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from deployments.engine.config import DeviceSettings, EngineSettings
from deployments.engine.errors import DarkroomError, DeviceUnavailable, OutOfDeviceMemory
from deployments.engine.row_threads import RowThreads

logger = logging.getLogger(__name__)

# mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_AT_THE_TOP = 2**31 - 1  # bytes; the largest that it takes
_FROM_THE_HEAP = 32 * 2**20  # bytes; the largest that it takes. What is larger goes back to the kernel when it is freed


@dataclass(frozen=True, slots=True)
class Device:
    """An open device, the dtype of its weights and activations, and the threads for a large forward."""

    torch_device: torch.device
    dtype: torch.dtype
    row_threads: RowThreads

    def probe(self) -> None:
        """Touch the device. Raises torch.AcceleratorError if it was lost."""
        if self.torch_device.type == "cuda":
            torch.zeros(1, device=self.torch_device).item()


def open_device(settings: DeviceSettings) -> Device:
    """Set this thread up for inference on the device that `settings` name.

    Raises DeviceUnavailable if the settings say CUDA and torch finds none.
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
    """The CPUs that this process may use. Not torch's default: Ray sets OMP_NUM_THREADS to the CPUs it books."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def dtype_of(settings: DeviceSettings, *, on_cuda: bool) -> torch.dtype:
    """The type of weights and activations."""
    name = settings.dtype if settings.dtype != "auto" else ("float16" if on_cuda else "float32")
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def vae_dtype(settings: EngineSettings, dtype: torch.dtype) -> torch.dtype:
    """The type of a VAE beside a UNet of `dtype`."""
    return dtype if settings.vae.dtype == "auto" else getattr(torch, settings.vae.dtype)


def pinned_numbers(values: Sequence[float] | Sequence[Sequence[float]], device: torch.device) -> torch.Tensor:
    """Python numbers as a tensor on the device, without waiting for what the device is doing.

    Returns:
        float32, of the values' shape. It goes through pinned memory: from any other, a copy to a GPU waits.
    """
    pinned = device.type == "cuda"
    return torch.tensor(values, dtype=torch.float32, pin_memory=pinned).to(device, non_blocking=True)


def release_memory() -> None:
    """Give freed weights back to the device and to the operating system.

    Modules hold reference cycles (hooks, parametrisations), hence the collection; glibc keeps freed arenas, hence the
    trim: without it, swapping checkpoints on a CPU grows the process.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def keep_freed_memory() -> None:
    """Keep what a CPU's tensors free in this process, for the next step's. Does nothing without glibc.

    glibc gives freed blocks back to the kernel beyond thresholds that one UNet step crosses again and again, and each
    page comes back zeroed, by a fault: some 3,000 of them in a step of demo-sd15 with two rows, a twelfth of its
    processor time.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for option, value in ((_TRIM_THRESHOLD, _KEPT_AT_THE_TOP), (_MMAP_THRESHOLD, _FROM_THE_HEAP)):
        if not libc.mallopt(option, value):
            raise RuntimeError(f"mallopt({option}, {value}) was refused")


def as_darkroom_error(error: Exception, what: str) -> DarkroomError:
    """`error` itself if it is a DarkroomError; else one whose message begins with `what`.

    It has no traceback, cause or context, which would keep frames and their tensors alive. An unexpected error is
    logged whole, but its text, which may quote anything, stays out of the message. Not for a lost device
    (torch.AcceleratorError), which is no single image's failure.
    """
    if isinstance(error, DarkroomError):
        error.__traceback__ = error.__cause__ = error.__context__ = None
        return error
    if isinstance(error, torch.OutOfMemoryError):
        return OutOfDeviceMemory(f"{what}: out of device memory: {error}")
    logger.error("%s", what, exc_info=error)
    return DarkroomError(f"{what}: {type(error).__name__}")
