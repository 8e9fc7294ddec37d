"""What Ray gave this replica to compute on, and what that means for its device settings.

Knows Ray's runtime context and the environment; opening the device is the engine's.
"""

import os
from dataclasses import dataclass
from typing import TypeVar

import ray

from deployments.engine.config import DeviceSettings
from deployments.engine.errors import DeviceUnavailable

SettingsT = TypeVar("SettingsT", bound=DeviceSettings)

_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class DeviceClaim:
    """A replica's share of the cluster's GPUs.

    gpus: 0, a fraction, or 1. gpu_ids: of the GPUs it may use, as Ray numbers them on its node.
    visible_devices: CUDA_VISIBLE_DEVICES of the process; "" hides every GPU.
    """

    gpus: float
    gpu_ids: tuple[str, ...]
    visible_devices: str | None


def claim_device() -> DeviceClaim:
    """Read this worker's claim; to be called in a replica before anything opens a device.

    Ray leaves CUDA_VISIBLE_DEVICES unset where nothing was claimed, so that such a process sees every GPU of
    its node and may fill the memory of one that others share. Without a claim all of them are hidden.
    """
    context = ray.get_runtime_context()
    gpus = float(context.get_assigned_resources().get("GPU", 0.0))
    if gpus == 0:
        os.environ[_VISIBLE] = ""
    return DeviceClaim(
        gpus=gpus,
        gpu_ids=tuple(context.get_accelerator_ids().get("GPU", ())),
        visible_devices=os.environ.get(_VISIBLE),
    )


def settings_for(claim: DeviceClaim, settings: SettingsT) -> SettingsT:
    """`settings` as the claim allows: the CPU where no GPU was claimed, memory capped to a fraction's share.

    Raises DeviceUnavailable if CUDA is asked for without a claim. (A claim without CUDA behind it, on logical
    GPUs, is the engine's to judge: "auto" falls back to the CPU there, "cuda" refuses.)
    """
    if claim.gpus == 0:
        if settings.device == "cuda":
            raise DeviceUnavailable("device is 'cuda', but num_gpus is 0: claim a GPU or a fraction of one")
        return settings.model_copy(update={"device": "cpu"})
    return settings.model_copy(update={"memory_fraction": min(settings.memory_fraction, claim.gpus)})
