"""Gives memory back that nothing refers to any more. Knows nothing of what it held."""

import ctypes
import gc
import sys

import torch


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
