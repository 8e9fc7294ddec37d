"""Binds the graph: one Serve application from the settings. Nothing else.

Only the stages that the catalogue needs are started. Runs inside the cluster (Serve imports this module in a
worker), and imports no torch, so that binding takes no longer than it must.
"""

from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig

from deployments.autoscaling import DemandPolicy
from deployments.config import ReplicaSettings
from deployments.denoising_stage import DenoisingStage
from deployments.detector import Detector
from deployments.nsfw_classifier import NSFWClassifier
from deployments.replica_router import ReplicaRouter
from deployments.sd15 import SD15
from deployments.sdxl_base import SDXLBase
from deployments.sdxl_refiner import SDXLRefiner
from deployments.text_encoder import TextEncoder
from deployments.upscaler import Upscaler
from serve_app.config.claims import Claims
from serve_app.config.settings import Settings, StageName
from serve_app.router import Router

_DEPLOYMENTS: dict[StageName, type] = {
    "text_encoder": TextEncoder,
    "sd15": SD15,
    "sdxl_base": SDXLBase,
    "sdxl_refiner": SDXLRefiner,
    "nsfw_classifier": NSFWClassifier,
    "upscaler": Upscaler,
    "detector": Detector,
}

# Serve's defaults (0.025 s, doubling up to 0.5 s) leave a saturated replica idle between two looks at it.
_BACKOFF = {"initial_backoff_s": 0.005, "max_backoff_s": 0.02}
_REQUEST_ROUTER = RequestRouterConfig(**_BACKOFF)
# of stages whose replicas are called by name
_NAMING_ROUTER = RequestRouterConfig(request_router_class=ReplicaRouter, **_BACKOFF)

# Requests in flight for each replica of a stage that isn't told another number.
_TARGET_ONGOING_REQUESTS = 8.0


def build(settings: Settings) -> serve.Application:
    """The application that `settings` describe: the router, with handles of the stages it needs.

    Raises ValueError if, under `device: auto`, the cluster's GPUs can't hold the stages' claims.
    """
    claims = Claims(settings, ray.cluster_resources().get("GPU", 0.0) if settings.device == "auto" else 0.0)
    claims.check()
    stages: dict[str, serve.Application] = {}
    for name, gpus in claims.gpus.items():
        stage = claims.placed(name)
        stages[name] = _deployment(_DEPLOYMENTS[name], stage, gpus).bind(stage, **_arguments(name, settings))
    return _deployment(Router, settings.stages.router, 0.0).bind(settings, stages)


def _arguments(name: StageName, settings: Settings) -> dict[str, Any]:
    """What a stage's deployment is bound with besides its own settings."""
    match name:
        case "text_encoder":
            catalogue = {model: of.checkpoint() for model, of in settings.generating().items()}
            return {"catalogue": catalogue, "loras": settings.loras, "ip_adapters": settings.ip_adapters}
        case "nsfw_classifier":
            return settings.safety.model_dump(include={"classifier", "safety_checker", "threshold"})
        case "upscaler":
            return {"upscalers": settings.upscalers}
        case "detector":
            return {"detectors": settings.detectors}
    loras, conditioning = settings.adapters(name)
    return {
        "catalogue": settings.checkpoints(name),
        "allowed": settings.allowed_sizes(name),
        "loras": loras,
        "conditioning": conditioning,
        "sizes": settings.default_sizes(name),
    }


def _deployment(cls: type, replica: ReplicaSettings, gpus: float) -> serve.Deployment:
    """`cls` as a deployment of its own name, with what `replica` says."""
    actor: dict[str, Any] = {"num_cpus": replica.num_cpus, "num_gpus": gpus}
    if replica.resources:
        actor["resources"] = replica.resources
    if gpus and replica.accelerator_type is not None:
        actor["accelerator_type"] = replica.accelerator_type
    denoises = issubclass(cls, DenoisingStage)
    scaling: dict[str, Any] = {"num_replicas": replica.replicas}
    if replica.autoscaling is not None:
        autoscaling = replica.autoscaling.model_dump(exclude_none=True)
        scaling = {"autoscaling_config": AutoscalingConfig(**_policy(autoscaling, denoises=denoises))}
    return serve.deployment(cls).options(
        name=cls.__name__,
        ray_actor_options=actor,
        max_ongoing_requests=replica.max_ongoing_requests,
        graceful_shutdown_timeout_s=replica.graceful_shutdown_timeout_s,
        health_check_period_s=replica.health_check_period_s,
        health_check_timeout_s=replica.health_check_timeout_s,
        request_router_config=_NAMING_ROUTER if denoises or cls is TextEncoder else _REQUEST_ROUTER,
        **scaling,
    )


def _policy(autoscaling: dict[str, Any], *, denoises: bool) -> dict[str, Any]:
    """Serve's autoscaling configuration of a deployment, from our settings of it."""
    targets = {
        name: autoscaling.pop(name) for name in ("target_work_s", "target_ongoing_requests") if name in autoscaling
    }
    del autoscaling["startup_s"]
    if denoises:
        return autoscaling | {"policy": AutoscalingPolicy(policy_function=DemandPolicy, policy_kwargs=targets)}
    return autoscaling | {"target_ongoing_requests": targets.get("target_ongoing_requests", _TARGET_ONGOING_REQUESTS)}
