"""The memory that this process's engine may fill: on CUDA its hard cap, on the CPU a setting or what is available."""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from deployments.engine.config import EngineSettings
from deployments.engine.memory.table import GIB

_ROOT = Path("/")
# files of a control group: its limit, its usage, and the part of that which the kernel reclaims; version 2, then 1
_CGROUPS = (
    ("", "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("memory", "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """The memory for weights and activations together.

    Attributes:
        origin: where the number comes from, for people.
        setting: the setting that changes it.
        offloads: whether idle weights can move to other memory: on a GPU, not on the CPU.
    """

    bytes: int
    origin: str
    setting: str
    offloads: bool = False


def budget_of(settings: EngineSettings, device: torch.device) -> MemoryBudget:
    """The budget of an engine on `device`, which has nothing loaded yet."""
    if device.type == "cuda":
        share, held = settings.memory_fraction, torch.cuda.memory_reserved(device)
        free, total = torch.cuda.mem_get_info(device)
        planned = planned_bytes(total, share, free + held)
        origin = f"{share:g} of the device's {total / GIB:.1f} GiB"
        if planned < int(total * share):
            origin += f", of which {planned / GIB:.1f} were free at the start"
        return MemoryBudget(planned, origin, "num_gpus or memory_fraction", offloads=True)
    if settings.memory_gib is not None:
        return MemoryBudget(int(settings.memory_gib * GIB), "memory_gib", "memory_gib")
    left = max(0, available_bytes() - int(settings.host_memory_gib * GIB))
    return MemoryBudget(left, "what the machine had left at the start", "memory (memory_gib)")


def planned_bytes(total: int, share: float, available: int) -> int:
    """The bytes of a device that an engine with a `share` of it may fill.

    A share below 1 leaves room for the CUDA contexts of all processes. A whole device is also used by the engine's own
    context, and by processes without a claim: there only what is available counts.

    Args:
        total: bytes of the device.
        share: 0..1.
        available: bytes that are free, or the engine's already.
    """
    cap = int(total * share)
    return min(cap, available) if share == 1 else cap


def available_bytes(root: Path = _ROOT) -> int:
    """Bytes that this process can still get, of the machine or of its tightest control group.

    Page cache that can be dropped counts as free, swap doesn't. `root` is the folder of proc and sys.
    """
    if sys.platform != "linux":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = (root / "proc/meminfo").read_text()
    left = [int(kib) * 1024 for kib in re.findall(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)]
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller, mount, *files in _CGROUPS:
            if controller in controllers.split(","):
                group = root / mount / path.lstrip("/")
                groups = [folder for folder in (group, *group.parents) if (folder / files[0]).is_file()]
                left += [_left_in(folder, *files) for folder in groups]
    return max(0, min(left))


def _left_in(group: Path, limit: str, usage: str, reclaimable: str) -> int:
    allowed = (group / limit).read_text().strip()
    if allowed == "max":
        return 1 << 62
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(allowed) - int((group / usage).read_text()) + int(stat.get(reclaimable, 0))
