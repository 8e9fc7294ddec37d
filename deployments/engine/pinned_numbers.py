"""Python numbers as a tensor on the device, without waiting for what the device is doing."""

from collections.abc import Sequence

import torch


def pinned_numbers(values: Sequence[float] | Sequence[Sequence[float]], device: torch.device) -> torch.Tensor:
    """float32, of the values' shape. From pinned memory: from any other, a copy to a GPU waits."""
    pinned = device.type == "cuda"
    return torch.tensor(values, dtype=torch.float32, pin_memory=pinned).to(device, non_blocking=True)
