"""What a step frees, the next one gets: counted in page faults, in a process of its own."""

import platform
import subprocess
import sys

import pytest

_COUNT = """
import resource
from deployments.engine.heap import keep_freed_memory

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
    ran = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=True)
    given_back, kept = map(int, ran.stdout.split())
    assert given_back > 10_000, "nothing to keep: the test shows nothing"
    assert kept < given_back / 100
