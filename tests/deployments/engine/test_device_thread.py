"""The device thread: one call after the other, and nothing after the device was lost."""

import threading
import weakref

import pytest
import torch

from deployments.engine.config import DeviceSettings
from deployments.engine.device_thread import DeviceThread
from deployments.engine.errors import EngineStopped, OutOfDeviceMemory

SETTINGS = DeviceSettings(device="cpu", cpu_threads=1)


async def test_calls_run_in_the_order_they_came_in_one_thread() -> None:
    thread = DeviceThread(SETTINGS)
    threads: list[int] = []
    order: list[int] = []

    def call(number: int) -> bool:
        threads.append(threading.get_ident())
        order.append(number)
        return torch.is_grad_enabled()

    queued = [thread.submit(call, number) for number in range(20)]
    assert await thread.run(call, 20) is False
    assert not any(future.result() for future in queued)
    assert order == list(range(21))
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()
    thread.close()


@pytest.mark.parametrize(("wanted", "size"), [(None, 1), (8, 8)])
def test_on_a_cpu_a_batch_is_one_unless_more_is_wanted(wanted: int | None, size: int) -> None:
    thread = DeviceThread(SETTINGS)
    assert thread.batch(wanted) == size
    thread.close()


async def test_an_error_of_a_call_is_the_callers_alone() -> None:
    thread = DeviceThread(SETTINGS)
    with pytest.raises(ZeroDivisionError):
        await thread.run(divmod, 1, 0)
    assert await thread.run(divmod, 7, 2) == (3, 1)
    thread.close()


async def test_memory_that_ran_out_is_given_back_before_anybody_hears_of_it() -> None:
    thread = DeviceThread(SETTINGS)
    held: list[weakref.ref[torch.Tensor]] = []

    def overfill() -> None:
        tensor = torch.zeros(8)
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(OutOfDeviceMemory, match="no room") as raised:
        await thread.run(overfill)
    assert raised.value.__context__ is None
    assert held[0]() is None
    assert await thread.run(divmod, 7, 2) == (3, 1)
    thread.close()


async def test_a_lost_device_ends_it() -> None:
    thread = DeviceThread(SETTINGS)

    def lose() -> None:
        raise torch.AcceleratorError("injected: an illegal memory access was encountered")

    with pytest.raises(EngineStopped, match="illegal memory access"):
        await thread.run(lose)
    with pytest.raises(EngineStopped, match="illegal memory access"):
        thread.check()
    with pytest.raises(EngineStopped, match="illegal memory access"):
        thread.submit(divmod, 7, 2)
    thread.close()


def test_closing_waits_for_what_is_queued_and_may_be_repeated() -> None:
    thread = DeviceThread(SETTINGS)
    queued = [thread.submit(divmod, number, 2) for number in range(5)]
    thread.close()
    assert [future.result() for future in queued] == [divmod(number, 2) for number in range(5)]
    thread.close()
    with pytest.raises(EngineStopped, match="closed"):
        thread.submit(divmod, 7, 2)
