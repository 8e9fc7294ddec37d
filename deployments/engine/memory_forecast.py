"""The memory plan of an engine without its device, to check settings."""

from collections.abc import Mapping

import torch

from deployments.engine.checkpoints.loader import describe_denoiser
from deployments.engine.checkpoints.spec import CheckpointSpec
from deployments.engine.conditioning.registry import step_traces
from deployments.engine.config import ConditioningSettings, EngineSettings, LoraSettings
from deployments.engine.device import dtype_of
from deployments.engine.memory.budget import MemoryBudget, budget_of
from deployments.engine.memory.limits import AllowedSizes
from deployments.engine.memory.plan import MemoryPlan
from deployments.engine.memory.table import GIB, MemoryTable


def forecast(
    settings: EngineSettings,
    catalogue: Mapping[str, CheckpointSpec],
    allowed: Mapping[str, AllowedSizes],
    loras: LoraSettings,
    conditioning: ConditioningSettings,
    gpu_gib: float | None,
) -> MemoryTable:
    """The memory plan of an engine; configurations of hub repositories are fetched.

    Args:
        settings: of the engine.
        catalogue: checkpoints by name.
        allowed: the largest requests of each checkpoint.
        loras: the folder of LoRAs.
        conditioning: the folders of conditionings and VAEs.
        gpu_gib: memory of the GPU, of which the engine gets `memory_fraction`; None for this machine's CPU.
    """
    if gpu_gib is None:
        budget = budget_of(settings, torch.device("cpu"))
    else:
        origin = f"{settings.memory_fraction:g} of a device's {gpu_gib:g} GiB"
        budget = MemoryBudget(int(gpu_gib * GIB * settings.memory_fraction), origin, "num_gpus", offloads=True)
    plan = MemoryPlan(
        settings,
        dtype_of(settings, on_cuda=gpu_gib is not None),
        budget,
        catalogue,
        describe_denoiser,
        allowed=allowed,
        reserved=loras.device_bytes + conditioning.device_bytes,
        traces=step_traces(conditioning),
        other_vaes=conditioning.vaes.folder is not None,
    )
    return plan.table
