"""Which stage claims how much of a GPU, as the settings and the GPUs that are there allow. Knows no Ray."""

from deployments.config import ReplicaSettings
from deployments.engine.config import DeviceSettings
from serve_app.config.settings import STAGE_OF_FAMILY, Settings


class Claims:
    """The claims of one application.

    gpus: of the cluster, logical ones too; unused but under `device: auto`, where none means the CPU for all.
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
        for family, name in STAGE_OF_FAMILY.items():
            if settings.checkpoints(family):
                claims.of(name, getattr(stages, name), getattr(stages, name).engine)
        if settings.safety.mode != "off":
            claims.of("nsfw_classifier", stages.nsfw_classifier, stages.nsfw_classifier.device)
        if settings.upscalers.folder is not None:
            claims.of("upscaler", stages.upscaler, stages.upscaler.device)
        return claims

    def of(self, name: str, replica: ReplicaSettings, device: DeviceSettings) -> float:
        """GPUs that one replica of a stage claims."""
        if "cpu" in (self._device, device.device) or (self._device == "auto" and not self._gpus):
            return 0.0
        scaling = replica.autoscaling
        self._booked[name] = replica.num_gpus * (scaling.min_replicas if scaling else replica.replicas)
        return replica.num_gpus

    def device(self, settings: DeviceSettings, gpus: float) -> DeviceSettings:
        """`settings` for a stage that claims `gpus`: CUDA is demanded only where it is claimed."""
        if gpus == 0:
            return settings.model_copy(update={"device": "cpu"})
        wanted = "cuda" if "cuda" in (self._device, settings.device) else "auto"
        return settings.model_copy(update={"device": wanted})

    def unfit(self, gpus: float) -> str | None:
        """Why so many GPUs can't hold them, None if they can."""
        total = sum(self._booked.values())
        if total <= gpus + 1e-6:
            return None
        booked = ", ".join(f"{name} {claim:g}" for name, claim in self._booked.items() if claim)
        return (
            f"the stages claim {total:g} GPUs ({booked}), the cluster has {gpus:g}: lower "
            "stages.*.num_gpus, or say device: cuda where the cluster adds nodes by itself"
        )

    def check(self) -> None:
        """Raise ValueError about what would wait for ever (a cluster that adds nodes says `device: cuda`, and isn't
        counted).
        """
        problem = self.unfit(self._gpus) if self._device == "auto" else None
        if problem is not None:
            raise ValueError(problem)
