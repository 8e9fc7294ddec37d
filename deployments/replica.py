"""What every deployment's replica needs from Ray: its share of a GPU, its description, whether Serve is stopping it."""

import gc
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import ray
from ray import serve
from ray._private.worker import global_worker

from deployments.engine.config import DeviceSettings
from deployments.engine.errors import DeviceUnavailable
from deployments.engine.memory.limits import LargestSizes
from deployments.engine.memory.table import MemoryTable

logger = logging.getLogger("ray.serve")

SettingsT = TypeVar("SettingsT", bound=DeviceSettings)

_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, slots=True)
class DeviceClaim:
    """A replica's share of the cluster's GPUs.

    Args:
        gpus: 0, a fraction, or 1.
        gpu_ids: the GPUs that it may use, as Ray numbers them on its node.
        visible_devices: CUDA_VISIBLE_DEVICES of the process; "" hides every GPU.
    """

    gpus: float
    gpu_ids: tuple[str, ...]
    visible_devices: str | None


@dataclass(frozen=True, slots=True)
class StageDescription:
    """What a replica reports of itself.

    Args:
        claim: GPUs assigned to it: 0, a fraction, or 1.
        gpu_ids: which ones, as Ray numbers them on its node.
        visible_devices: CUDA_VISIBLE_DEVICES of its process.
        checkpoints: those in memory, least recently used first.
        largest_sizes: the largest images that fit its memory, by checkpoint.
        compiled: its compiled graphs.
        compile_failures: number of graphs that couldn't be compiled.
        memory: the plan of its memory.
    """

    name: str
    replica_id: str
    device: str
    dtype: str
    claim: float
    gpu_ids: tuple[str, ...]
    visible_devices: str | None
    checkpoints: tuple[str, ...]
    largest_sizes: Mapping[str, LargestSizes] = field(default_factory=dict)
    compiled: tuple[str, ...] = ()
    compile_failures: int = 0
    memory: MemoryTable | None = None


def claim_device() -> DeviceClaim:
    """Read this replica's claim. Must be called before anything opens a device.

    Ray leaves CUDA_VISIBLE_DEVICES unset where nothing was claimed, so that such a process would see every GPU of its
    node. Without a claim all of them are hidden.
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
    """`settings` within the claim: the CPU without one, memory limited to a fraction's share.

    A claim of logical GPUs, without CUDA behind it, is left to the engine: "auto" uses the CPU there, "cuda" refuses.
    "cpu" beside a claim is the application's "cpu-with-claims", whose other settings are those of a GPU.

    Raises:
        DeviceUnavailable: device is "cuda", and nothing was claimed.
    """
    if claim.gpus == 0:
        if settings.device == "cuda":
            raise DeviceUnavailable("device is 'cuda', but num_gpus is 0: claim a GPU or a fraction of one")
        return settings.model_copy(update={"device": "cpu"})
    if settings.device == "cpu":
        logger.warning("%g of a GPU is claimed, and the CPU computes (device: cpu-with-claims)", claim.gpus)
        for_cpu = settings.for_cpu()
        for name, value in settings:
            if value != getattr(for_cpu, name):
                logger.warning("%s %s is for a GPU: %s is used", name, value, getattr(for_cpu, name))
        return for_cpu
    return settings.model_copy(update={"memory_fraction": min(settings.memory_fraction, claim.gpus)})


def describe_replica(claim: DeviceClaim, *, device: str, dtype: str, checkpoints: tuple[str, ...]) -> StageDescription:
    """The description of the replica that calls this; the arguments are those of StageDescription."""
    context = serve.get_replica_context()
    return StageDescription(
        name=context.deployment,
        replica_id=context.replica_id.unique_id,
        device=device,
        dtype=dtype,
        claim=claim.gpus,
        gpu_ids=claim.gpu_ids,
        visible_devices=claim.visible_devices,
        checkpoints=checkpoints,
    )


def is_stopping() -> bool:
    """Whether Serve has begun to stop the replica that calls this, and only waits for its requests in flight.

    Serve 2.60 notifies a replica only after its last request has ended (it calls `__del__`), stops asking for its
    health, and kills it after graceful_shutdown_timeout_s without `__del__`. So this reads Serve's own state by
    private names: Ray is pinned to the minor version, and a test on a real cluster checks the names.
    """
    replica = global_worker.actors[global_worker.actor_id]
    stopping: bool = replica._replica_impl._shutting_down
    return stopping


@contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pause the garbage collector for an import, and exempt what was imported from later collections.

    torch and diffusers create half a million objects that live as long as the process; scanning them again and again
    takes a fifth of the import's time. Only for imports: a checkpoint loaded inside could never be collected.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
