"""Keeps what a CPU's tensors free in the process, for the next step's.

glibc gives freed blocks back to the kernel beyond thresholds that one UNet step crosses again and again, and each page
comes back zeroed, by a fault: some 3,000 of them in a step of demo-sd15 with two rows, a twelfth of its processor time.
Knows an allocator; nothing of tensors.
"""

import ctypes
import platform

# mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_AT_THE_TOP = 2**31 - 1  # bytes; the largest that it takes
_FROM_THE_HEAP = 32 * 2**20  # bytes; the largest that it takes. What is larger goes back to the kernel when it is freed


def keep_freed_memory() -> None:
    """For this process, once and for all. Does nothing where the C library isn't glibc."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    for option, value in ((_TRIM_THRESHOLD, _KEPT_AT_THE_TOP), (_MMAP_THRESHOLD, _FROM_THE_HEAP)):
        if not libc.mallopt(option, value):
            raise RuntimeError(f"mallopt({option}, {value}) was refused")
