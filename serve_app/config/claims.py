"""The part of a GPU that each stage claims, and the memory that it would plan with that part."""

from deployments.config import DENOISING_STAGES, ReplicaSettings
from deployments.engine.config import ConditioningSettings, DeviceSettings
from deployments.engine.memory.table import MemoryTable
from serve_app.config.settings import Settings


class Claims:
    """The GPU claims of one application's stages.

    Args:
        settings: the application's settings.
        gpus: GPUs of the cluster, logical ones included. Used only with `device: auto`, where 0 means that every stage
            runs on the CPU.
    """

    def __init__(self, settings: Settings, gpus: float) -> None:
        self._device = settings.device
        self._gpus = gpus if self._device == "auto" else 0.0
        self._booked: dict[str, float] = {}

    @classmethod
    def of_all(cls, settings: Settings, gpus: float) -> "Claims":
        """The claims of every stage that the settings start."""
        claims, stages = cls(settings, gpus), settings.stages
        claims.of("text_encoder", stages.text_encoder, stages.text_encoder.device)
        for name in DENOISING_STAGES:
            if settings.checkpoints(name):
                claims.of(name, getattr(stages, name), getattr(stages, name).engine)
        if settings.safety.mode != "off":
            claims.of("nsfw_classifier", stages.nsfw_classifier, stages.nsfw_classifier.device)
        if settings.upscalers.folder is not None:
            claims.of("upscaler", stages.upscaler, stages.upscaler.device)
        return claims

    def of(self, name: str, replica: ReplicaSettings, device: DeviceSettings) -> float:
        """Book a stage's replicas; returns the GPUs that one of them claims."""
        if "cpu" in (self._device, device.device) or (self._device == "auto" and not self._gpus):
            return 0.0
        scaling = replica.autoscaling
        self._booked[name] = replica.num_gpus * (scaling.min_replicas if scaling else replica.replicas)
        return replica.num_gpus

    def device(self, settings: DeviceSettings, gpus: float) -> DeviceSettings:
        """A stage's device settings, given the GPUs that it claims: CUDA is required only where it is claimed."""
        if gpus == 0:
            return settings.model_copy(update={"device": "cpu"})
        device = "cuda" if "cuda" in (self._device, settings.device) else "auto"
        return settings.model_copy(update={"device": device})

    def unfit(self, gpus: float) -> str | None:
        """Why `gpus` GPUs can't hold the claims; None if they can."""
        total = sum(self._booked.values())
        if total <= gpus + 1e-6:
            return None
        booked = ", ".join(f"{name} {claim:g}" for name, claim in self._booked.items() if claim)
        return (
            f"the stages claim {total:g} GPUs ({booked}), the cluster has {gpus:g}: lower stages.*.num_gpus, "
            "or set device: cuda if the cluster adds nodes when they are needed"
        )

    def check(self) -> None:
        """Raise ValueError if replicas would wait forever for a GPU.

        With `device: cuda` nothing is checked: such a cluster may add nodes.
        """
        problem = self.unfit(self._gpus) if self._device == "auto" else None
        if problem is not None:
            raise ValueError(problem)


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
        catalogue = settings.checkpoints(name)
        if not catalogue:
            continue
        stage = getattr(settings.stages, name)
        claim = claims.of(name, stage, stage.engine)
        fraction = min(stage.engine.memory_fraction, claim) if claim else stage.engine.memory_fraction
        loras, controlnets = settings.adapters(name)
        tables[name] = forecast(
            stage.engine.model_copy(update={"memory_fraction": fraction}),
            catalogue,
            settings.allowed_sizes(name),
            loras,
            ConditioningSettings(controlnets),
            gpu_gib if claim else None,
        )
    return tables
