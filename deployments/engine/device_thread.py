"""A thread that owns the device for a stage whose work is single calls (text encoding, classification).

The denoising stages have the engine's own loop instead (engine.py).
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

import torch

from deployments.engine.config import DeviceSettings
from deployments.engine.device import Device, open_device
from deployments.engine.errors import EngineStopped, OutOfDeviceMemory

_BATCH_OF_A_GPU = 8

P = ParamSpec("P")
T = TypeVar("T")


class DeviceThread:
    """One thread with its device; calls run in the order they came.

    A call that runs out of memory raises OutOfDeviceMemory, which keeps no tensor alive.
    Raises DeviceUnavailable at construction if the device can't be opened.
    """

    def __init__(self, settings: DeviceSettings) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="device")
        self._lost: str | None = None
        self._device: Device = self._executor.submit(open_device, settings).result()

    @property
    def device(self) -> torch.device:
        """Where calls compute."""
        return self._device.torch_device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of weights."""
        return self._device.dtype

    def batch(self, wanted: int | None) -> int:
        """The size of batches: as wanted; without a wish 8 on a GPU, and 1 on a CPU, which gains by no more."""
        if wanted is not None:
            return wanted
        return 1 if self.device.type == "cpu" else _BATCH_OF_A_GPU

    def submit(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Queue `fn` for the thread. Raises EngineStopped once the device is lost or the thread closed."""
        self.check()
        return self._executor.submit(partial(self._guarded, partial(fn, *args, **kwargs)))

    async def run(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`fn`'s result, without blocking the event loop."""
        return await asyncio.wrap_future(self.submit(fn, *args, **kwargs))

    def check(self) -> None:
        """Raise EngineStopped if the device was lost or the thread was closed."""
        if self._lost is not None:
            raise EngineStopped(self._lost)

    def close(self) -> None:
        """Refuse new calls and wait for those queued."""
        self._lost = self._lost or "the device thread was closed"
        self._executor.shutdown(wait=True)

    def _guarded(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except torch.AcceleratorError as error:  # the CUDA context is unusable from here on
            self._lost = f"the device was lost: {error}"
            raise EngineStopped(self._lost) from error
        except torch.OutOfMemoryError as error:
            said = str(error)
        # outside of the except block: the frames of its traceback hold what there was no more room beside, and whoever
        # gets the error may keep it while smaller calls are tried
        torch.cuda.empty_cache()
        raise OutOfDeviceMemory(f"out of device memory: {said}")
