"""What a report has to say of where its figures come from: machine, versions, commit. No torch here."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "numpy", "xformers", "triton")


def machine() -> dict[str, str | int]:
    """Processor, number of processors available to this process, operating system, Python; GPUs, if there are some."""
    found: dict[str, str | int] = {
        "processor": _processor(),
        "processors": processors(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    gpus = _gpus()
    return {**found, "gpu": gpus} if gpus else found


def processors() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Installed releases of the packages that decide the figures."""
    found: dict[str, str] = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The checkout's commit, with "+changes" where tracked files differ from it; "unknown" outside of git."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> str:
    """Names, memory and driver as nvidia-smi lists them; empty without it."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(dict.fromkeys(line.strip() for line in done.stdout.splitlines() if line.strip()))
