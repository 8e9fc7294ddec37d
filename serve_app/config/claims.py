"""The part of a GPU that each stage claims, and the memory that it would plan with that part."""

from deployments.config import DENOISING_STAGES, ReplicaSettings, StageSettings
from deployments.engine.memory.table import MemoryTable
from serve_app.config.settings import Settings, StageName


class Claims:
    """The GPU claims of one application's stages.

    Args:
        settings: the application's settings.
        gpus: GPUs of the cluster, logical ones included. Used only with `device: auto`, where 0 means that every stage
            runs on the CPU.

    Attributes:
        gpus: GPUs that one replica of a stage claims, by the stages that the settings start.
    """

    def __init__(self, settings: Settings, gpus: float) -> None:
        self._device = settings.device
        self._cluster = gpus if self._device == "auto" else 0.0
        self._stages = settings.started_stages()
        self.gpus = {name: self._claim(stage) for name, stage in self._stages.items()}

    def placed(self, name: StageName) -> ReplicaSettings:
        """A stage's settings, given the GPUs that it claims: CUDA is required only where it is claimed."""
        stage = self._stages[name]
        part = _device_part(stage)
        settings = getattr(stage, part)
        on_cpu = self._device == "cpu-with-claims" or not self.gpus[name]
        device = "cpu" if on_cpu else "cuda" if "cuda" in (self._device, settings.device) else "auto"
        update = {"device": device}
        return stage.model_copy(update={part: settings.model_copy(update=update)})

    def unfit(self, gpus: float) -> str | None:
        """Why `gpus` GPUs can't hold the claims; None if they can."""
        booked = {name: claim * _replicas(self._stages[name]) for name, claim in self.gpus.items() if claim}
        total = sum(booked.values())
        if total <= gpus + 1e-6:
            return None
        named = ", ".join(f"{name} {claim:g}" for name, claim in booked.items())
        return (
            f"the stages claim {total:g} GPUs ({named}), the cluster has {gpus:g}: lower stages.*.num_gpus, "
            "or set device: cuda if the cluster adds nodes when they are needed"
        )

    def check(self) -> None:
        """Raise ValueError if replicas would wait forever for a GPU.

        Only with `device: auto`: a cluster that is claimed in any case may add nodes.
        """
        problem = self.unfit(self._cluster) if self._device == "auto" else None
        if problem is not None:
            raise ValueError(problem)

    def _claim(self, stage: ReplicaSettings) -> float:
        on_cpu = "cpu" in (self._device, getattr(stage, _device_part(stage)).device)
        return 0.0 if on_cpu or (self._device == "auto" and not self._cluster) else stage.num_gpus


def _device_part(stage: ReplicaSettings) -> str:
    """The name of the part of a stage's settings that has its device."""
    return "engine" if isinstance(stage, StageSettings) else "device"


def _replicas(stage: ReplicaSettings) -> int:
    return stage.replicas if stage.autoscaling is None else stage.autoscaling.min_replicas


def memory_forecasts(settings: Settings, gpu_gib: float | None) -> dict[str, MemoryTable]:
    """The planned memory of each denoising stage (`darkroom config check --memory`).

    Args:
        settings: the application's settings.
        gpu_gib: GiB of the GPU that the stages share; None without one.
    """
    from deployments.engine.memory_forecast import forecast  # imports torch

    claims = Claims(settings, 0.0 if gpu_gib is None else 1.0)
    tables: dict[str, MemoryTable] = {}
    for name in DENOISING_STAGES:
        if name not in claims.gpus:
            continue
        stage, claim = getattr(settings.stages, name), claims.gpus[name]
        fraction = min(stage.engine.memory_fraction, claim) if claim else stage.engine.memory_fraction
        loras, conditioning = settings.adapters(name)
        tables[name] = forecast(
            stage.engine.model_copy(update={"memory_fraction": fraction}),
            settings.checkpoints(name),
            settings.allowed_sizes(name),
            loras,
            conditioning,
            gpu_gib if claim else None,
        )
    return tables
