"""Peak memory of this process: what torch allocated on the GPU, or what was resident on the processor's side."""

import resource

import torch


def reset_peak(device: torch.device) -> None:
    """Free what torch keeps, and start a new peak; a CPU process has only the peak of its whole life."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    reset_warm_peak(device)


def reset_warm_peak(device: torch.device) -> None:
    """Start a new peak after a warm-up, whose memory what is measured next needn't ask the driver for again."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Bytes at the peak: allocated by torch on CUDA since `reset_peak`, else resident so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
