"""Opens the device of this process, in the thread that will own it.

Torch's thread count and gradient mode are per thread, and OpenMP counts every thread that has used it: all torch work
of a process, loading included, belongs in the one thread that calls `open_device`.
"""

import os
from dataclasses import dataclass

import torch

from deployments.engine.errors import DeviceUnavailable
from deployments.engine.settings import DeviceSettings


@dataclass(frozen=True, slots=True)
class Device:
    """A device that is open, and the type that its weights and activations have."""

    torch_device: torch.device
    dtype: torch.dtype


def open_device(settings: DeviceSettings) -> Device:
    """Set this thread up for inference on the device that `settings` name.

    Raises DeviceUnavailable if CUDA is asked for and there is none.
    """
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise DeviceUnavailable(
            "device is 'cuda', but torch finds no CUDA device; set device: auto or cpu to run on the processor"
        )
    on_cuda = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
    torch.set_num_threads(settings.cpu_threads or os.cpu_count() or 1)
    torch.set_grad_enabled(False)
    if on_cuda:
        torch.cuda.set_device(0)
        torch.cuda.set_per_process_memory_fraction(settings.memory_fraction, 0)
    name = settings.dtype if settings.dtype != "auto" else ("float16" if on_cuda else "float32")
    dtype: torch.dtype = getattr(torch, name)
    return Device(torch.device("cuda", 0) if on_cuda else torch.device("cpu"), dtype)
