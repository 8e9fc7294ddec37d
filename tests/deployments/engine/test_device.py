"""Opening the device, in the thread that will own it, and what becomes of its memory."""

import platform
import subprocess
import sys
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


_COUNT_FAULTS = """
import resource
from deployments.engine.device import keep_freed_memory

def step():
    return [bytearray(b"x") * (8 << 20) for _ in range(4)]

def faults_of_ten():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

step()
given_back = faults_of_ten()
keep_freed_memory()
step()
print(given_back, faults_of_ten())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library gives memory back by its own rules")
def test_what_was_freed_is_not_faulted_in_again() -> None:
    ran = subprocess.run([sys.executable, "-c", _COUNT_FAULTS], capture_output=True, text=True, check=True)
    given_back, kept = map(int, ran.stdout.split())
    assert given_back > 10_000, "nothing to keep: the test shows nothing"
    assert kept < given_back / 100
