"""What a process may fill: settings, and what the kernel's files say is left."""

from pathlib import Path

import pytest
import torch

from deployments.engine.memory_budget import available_bytes, budget_of
from deployments.engine.memory_table import GIB
from deployments.engine.settings import EngineSettings

MIB = 1 << 20


def write(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with 8 GiB left, without control groups."""
    meminfo = f"MemTotal: {16 * MIB} kB\nMemFree: {MIB} kB\nMemAvailable:  {8 * MIB} kB"
    return write(tmp_path, {"proc/meminfo": meminfo, "proc/self/cgroup": "0::/"})


def test_without_a_limit_it_is_what_the_machine_has_left(root: Path) -> None:
    assert available_bytes(root) == 8 * GIB


def test_the_tightest_group_above_the_process_counts(root: Path) -> None:
    groups = root / "sys/fs/cgroup"
    write(root, {"proc/self/cgroup": "0::/pod/container"})
    for group, limit, usage, cache in (("pod", 3 * GIB, 2 * GIB, GIB // 2), ("pod/container", "max", GIB, 0)):
        stat = f"anon 1\ninactive_file {cache}"
        write(groups / group, {"memory.max": limit, "memory.current": usage, "memory.stat": stat})
    assert available_bytes(root) == 3 * GIB - 2 * GIB + GIB // 2


def test_groups_of_version_one(root: Path) -> None:
    write(root, {"proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/box\n0::/"})
    files = {"memory.limit_in_bytes": GIB, "memory.usage_in_bytes": GIB // 4, "memory.stat": "total_inactive_file 0"}
    write(root / "sys/fs/cgroup/memory", files)  # as a container sees its own group, whose path is outside of it
    assert available_bytes(root) == GIB - GIB // 4


def test_this_machine_has_something_left() -> None:
    assert available_bytes() > 64 * MIB


def test_a_setting_comes_before_what_is_left() -> None:
    budget = budget_of(EngineSettings(memory_gib=0.5), torch.device("cpu"))
    assert (budget.bytes, budget.setting) == (GIB // 2, "memory_gib")
