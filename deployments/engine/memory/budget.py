"""How much memory the engine of this process may fill, and where that is set.

On CUDA the hard cap of the process, on the CPU a setting or what the machine has left.
"""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from deployments.engine.config import EngineSettings
from deployments.engine.memory.table import GIB

_ROOT = Path("/")
# a control group's limit, what counts against it, and what of that the kernel gives back by itself: version 2, then 1
_CGROUPS = (
    ("", "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    ("memory", "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """bytes: for weights and activations together. origin: where the number comes from. setting: what changes it.

    offloads: weights that aren't needed can leave for other memory, which the CPU has none of.
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
    """Of a device with `total` bytes, what an engine with a share of it may fill; available: what is free, or its own.

    A share leaves room for the contexts of all who have one, and what those who start later hold isn't known yet. Of a
    whole device its own context has a part, and so has whoever is there without a claim.
    """
    cap = int(total * share)
    return min(cap, available) if share == 1 else cap


def available_bytes(root: Path = _ROOT) -> int:
    """Bytes that this process can still get: of the machine, or of the tightest control group that it is in.

    root: where proc and sys are. Files that can be dropped from the cache are counted as free, swap isn't.
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
