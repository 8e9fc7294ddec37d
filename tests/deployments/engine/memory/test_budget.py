"""What a process may fill: settings, and what the kernel's files say is left."""

from pathlib import Path

import pytest
import torch

from deployments.engine.config import EngineSettings
from deployments.engine.memory.budget import available_bytes, budget_of, planned_bytes
from deployments.engine.memory.table import GIB

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


@pytest.mark.parametrize(("share", "available", "planned"), [(1.0, 23, 23), (1.0, 25, 24), (0.5, 23, 12), (0.5, 6, 12)])
def test_a_whole_device_has_what_is_free_of_it(share: float, available: int, planned: int) -> None:
    assert planned_bytes(24 * GIB, share, available * GIB) == planned * GIB


def test_the_budget_of_a_device_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    # what torch would say of a device whose context and others hold a GiB, and this process two
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (21 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * GIB)
    whole, half = (budget_of(EngineSettings(memory_fraction=share), torch.device("cuda", 0)) for share in (1.0, 0.5))
    assert (whole.bytes, half.bytes) == (23 * GIB, 12 * GIB)
    assert whole.origin == "1 of the device's 24.0 GiB, of which 23.0 were free at the start"
    assert half.origin == "0.5 of the device's 24.0 GiB"
