"""Weights that aren't finite are found, by sums that copy none of them."""

from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from deployments.engine.checkpoints.tensors import check_finite
from deployments.engine.errors import CheckpointError

FILE = Path("weights.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_copy_in_float32_would_be_a_checkpoint_more(dtype: torch.dtype) -> None:
    model = torch.nn.Linear(512, 512, dtype=dtype)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        check_finite(model, FILE)
    sizes = [event.self_cpu_memory_usage for event in seen.events()]
    assert 0 < max(sizes) < 4096  # the sums; the weights in float32 take a MiB


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_sum_beyond_the_type_is_no_fault(dtype: torch.dtype) -> None:
    model = torch.nn.Linear(512, 512, dtype=dtype)
    torch.nn.init.constant_(model.weight, torch.finfo(dtype).max / 2)
    check_finite(model, FILE)
    torch.nn.init.constant_(model.weight[7:8, 5:6], float("nan"))
    with pytest.raises(CheckpointError, match="tensor weight holds values that are infinite or not a number"):
        check_finite(model, FILE)
