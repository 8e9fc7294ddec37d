"""Binds the graph: one Serve application from the settings. Nothing else.

Only the stages that the catalogue needs are started. Runs inside the cluster (Serve imports this module in a
worker), and imports neither torch nor the engine, so that binding takes no longer than it must.
"""

from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from deployments.engine.settings import DeviceSettings
from deployments.nsfw_classifier import NSFWClassifier
from deployments.sd15 import SD15
from deployments.sdxl_base import SDXLBase
from deployments.sdxl_refiner import SDXLRefiner
from deployments.stage import DenoisingStage
from deployments.stage_settings import ReplicaSettings
from deployments.text_encoder import TextEncoder
from serve_app.router import Router
from serve_app.settings import STAGE_OF_FAMILY, Settings

DENOISING_STAGES: dict[str, type[DenoisingStage]] = {
    "sd15": SD15,
    "sdxl_base": SDXLBase,
    "sdxl_refiner": SDXLRefiner,
}

# Serve's defaults (0.025 s, doubling up to 0.5 s) leave a saturated replica idle between two looks at it.
_REQUEST_ROUTER = RequestRouterConfig(initial_backoff_s=0.005, max_backoff_s=0.02)


def build(settings: Settings) -> serve.Application:
    """The application that `settings` describe: the router, with handles of the stages it needs.

    Raises ValueError if, under `device: auto`, the cluster's GPUs can't hold the stages' claims.
    """
    claims = _Claims(settings)
    stages: dict[str, serve.Application] = {}

    encoder = settings.stages.text_encoder
    gpus = claims.of("text_encoder", encoder, encoder.device)
    device = claims.device(encoder.device, gpus)
    stages["text_encoder"] = _deployment(TextEncoder, encoder, gpus).bind(
        encoder.model_copy(update={"device": device}),
        {name: model.checkpoint() for name, model in settings.generating().items()},
        settings.loras,
    )

    for family, name in STAGE_OF_FAMILY.items():
        catalogue = settings.checkpoints(family)
        if not catalogue:
            continue
        stage = getattr(settings.stages, name)
        gpus = claims.of(name, stage, stage.engine)
        engine = claims.device(stage.engine, gpus)
        stages[name] = _deployment(DENOISING_STAGES[name], stage, gpus).bind(
            stage.model_copy(update={"engine": engine}),
            catalogue,
            settings.smallest(family),
            # they are for what begins an image
            None if family == "sdxl-refiner" else settings.loras,
            None if family == "sdxl-refiner" else settings.controlnets,
        )

    if settings.safety.mode != "off":
        classifier = settings.stages.nsfw_classifier
        gpus = claims.of("nsfw_classifier", classifier, classifier.device)
        device = claims.device(classifier.device, gpus)
        stages["nsfw_classifier"] = _deployment(NSFWClassifier, classifier, gpus).bind(
            classifier.model_copy(update={"device": device}),
            classifier=settings.safety.classifier,
            safety_checker=settings.safety.safety_checker,
            threshold=settings.safety.threshold,
        )

    claims.check()
    return _deployment(Router, settings.stages.router, 0.0).bind(settings, stages)


class _Claims:
    """Which stage claims how much of a GPU, as the settings and the cluster allow."""

    def __init__(self, settings: Settings) -> None:
        self._device = settings.device
        self._cluster_gpus = ray.cluster_resources().get("GPU", 0.0) if self._device == "auto" else 0.0
        self._booked: dict[str, float] = {}

    def of(self, name: str, replica: ReplicaSettings, device: DeviceSettings) -> float:
        """GPUs that one replica of a stage claims."""
        if "cpu" in (self._device, device.device) or (self._device == "auto" and not self._cluster_gpus):
            return 0.0
        scaling = replica.autoscaling
        self._booked[name] = replica.num_gpus * (scaling.min_replicas if scaling else replica.replicas)
        return replica.num_gpus

    def device(self, settings: "DeviceSettings", gpus: float) -> "DeviceSettings":
        """`settings` for a stage that claims `gpus`: CUDA is demanded only where it is claimed."""
        if gpus == 0:
            return settings.model_copy(update={"device": "cpu"})
        wanted = "cuda" if "cuda" in (self._device, settings.device) else "auto"
        return settings.model_copy(update={"device": wanted})

    def check(self) -> None:
        """Refuse what would wait for ever (a cluster that adds nodes says `device: cuda`, and isn't
        counted).
        """
        total = sum(self._booked.values())
        if self._device == "auto" and total > self._cluster_gpus + 1e-6:
            booked = ", ".join(f"{name} {gpus:g}" for name, gpus in self._booked.items() if gpus)
            raise ValueError(
                f"the stages claim {total:g} GPUs ({booked}), the cluster has {self._cluster_gpus:g}: lower "
                "stages.*.num_gpus, or say device: cuda where the cluster adds nodes by itself"
            )


def _deployment(cls: type, replica: ReplicaSettings, gpus: float) -> serve.Deployment:
    """`cls` as a deployment of its own name, with what `replica` says."""
    actor: dict[str, Any] = {"num_cpus": replica.num_cpus, "num_gpus": gpus}
    if replica.resources:
        actor["resources"] = replica.resources
    if gpus and replica.accelerator_type is not None:
        actor["accelerator_type"] = replica.accelerator_type
    scaling: dict[str, Any] = {"num_replicas": replica.replicas}
    if replica.autoscaling is not None:
        autoscaling = replica.autoscaling.model_dump(exclude_none=True)
        scaling = {"autoscaling_config": AutoscalingConfig(**autoscaling)}
    return serve.deployment(cls).options(
        name=cls.__name__,
        ray_actor_options=actor,
        max_ongoing_requests=replica.max_ongoing_requests,
        graceful_shutdown_timeout_s=replica.graceful_shutdown_timeout_s,
        health_check_period_s=replica.health_check_period_s,
        health_check_timeout_s=replica.health_check_timeout_s,
        request_router_config=_REQUEST_ROUTER,
        **scaling,
    )
