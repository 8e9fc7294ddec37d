"""Imports of large libraries without the garbage collector, which takes a fifth of their time and finds little.

torch and diffusers make half a million objects that live as long as the process, and the collector walks through all
of them again and again while they come. Knows nothing of what is imported.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """No collection inside; what is there at the end is never walked through again, in later collections either.

    For imports only: a checkpoint that was loaded inside could never be collected.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
