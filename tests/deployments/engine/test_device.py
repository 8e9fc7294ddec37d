"""Opening the device, in the thread that will own it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from deployments.engine.config import DeviceSettings
from deployments.engine.device import Device, open_device
from deployments.engine.errors import DeviceUnavailable


@pytest.fixture
def tf32_as_by_default() -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.backends.cudnn.allow_tf32 = before


def opened(settings: DeviceSettings) -> Device:
    """In a thread of its own: threads and gradients are set for the thread that opens."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(open_device, settings).result()


@pytest.mark.usefixtures("tf32_as_by_default")
@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_float32_is_float32(dtype: str) -> None:
    """The flags are CUDA's, but can be read anywhere; "auto" is float32 on the CPU."""
    settings = DeviceSettings.model_validate({"device": "cpu", "dtype": dtype, "cpu_threads": 1})
    assert opened(settings).dtype == torch.float32
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.usefixtures("tf32_as_by_default")
def test_beside_16_bit_weights_tf32_stays_as_torch_has_it() -> None:
    assert opened(DeviceSettings(device="cpu", dtype="bfloat16", cpu_threads=1)).dtype == torch.bfloat16
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens where there is no CUDA")
def test_cuda_that_is_not_there() -> None:
    with pytest.raises(DeviceUnavailable, match="set device: auto or cpu"):
        opened(DeviceSettings(device="cuda"))


def test_the_thread_keeps_its_number_whatever_others_are_told() -> None:
    with ThreadPoolExecutor(1) as device, ThreadPoolExecutor(1) as other:
        device.submit(open_device, DeviceSettings(device="cpu", cpu_threads=3)).result()
        other.submit(torch.set_num_threads, 1).result()
        assert device.submit(torch.get_num_threads).result() == 3
