"""The graph that the settings make: which deployments, with which claims."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray import serve
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.build_app import build_app

from serve_app.app import build
from serve_app.config.check import check_config
from serve_app.config.settings import Settings
from tests.ray_cluster import GPUS, RayCluster

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_serve")]

ROOT = Path(__file__).parents[2]


def settings(name: str = "serve_config.yaml", **changes: Any) -> Settings:
    """A shipped configuration's settings, changed at the top."""
    values = check_config(ROOT / name).applications[0].args.model_dump(mode="json")
    return Settings.model_validate(values | changes)


def deployments(settings: Settings) -> dict[str, serve.Deployment]:
    return {d.name: d for d in build_app(build(settings), name="app").deployments}


def claims(settings: Settings) -> dict[str, float]:
    return {name: d.ray_actor_options.get("num_gpus", 0) for name, d in deployments(settings).items()}


def test_all_of_the_default() -> None:
    assert claims(settings()) == {
        "Router": 0,
        "TextEncoder": 0.05,
        "SD15": 0.3,
        "SDXLBase": 0.3,
        "SDXLRefiner": 0.3,
        "NSFWClassifier": 0.05,
    }


def test_serve_builds_it_from_the_files_args() -> None:
    args = yaml.safe_load((ROOT / "serve_config.yaml").read_text())["applications"][0]["args"]
    assert isinstance(call_user_app_builder_with_args_if_necessary(build, args), serve.Application)
    with pytest.raises(ValidationError, match=r"stages\.sd15\.num_gpu\n.*Extra inputs"):
        call_user_app_builder_with_args_if_necessary(build, args | {"stages": {"sd15": {"num_gpu": 1}}})


def test_only_what_the_catalogue_needs() -> None:
    values = settings().model_dump(mode="json")
    models = {"demo-sd15": values["models"]["demo-sd15"]}
    safety = values["safety"] | {"mode": "off"}
    assert set(deployments(settings(models=models, safety=safety))) == {"Router", "TextEncoder", "SD15"}


def test_an_upscaler_where_there_is_a_folder() -> None:
    stages = {"upscaler": {"num_gpus": 0.25, "max_ongoing_requests": 7}}
    upscaler = deployments(settings(upscalers={"folder": "models"}, stages=stages))["Upscaler"]
    assert (upscaler.ray_actor_options["num_gpus"], upscaler.max_ongoing_requests) == (0.25, 7)


def test_device_cpu_claims_nothing() -> None:
    assert not any(claims(settings(device="cpu")).values())


def test_device_cuda_claims_what_the_cluster_lacks() -> None:
    stages = {"sd15": {"num_gpus": 1, "replicas": GPUS + 1}}
    assert claims(settings(device="cuda", stages=stages))["SD15"] == 1


def test_claims_of_the_cpu_are_those_of_cuda() -> None:
    stages = {"sd15": {"num_gpus": 1, "replicas": GPUS + 1}, "text_encoder": {"device": {"device": "cuda"}}}
    found = deployments(settings("serve_config.cluster.yaml", device="cpu-with-claims"))
    cluster = deployments(settings("serve_config.cluster.yaml"))
    assert {name: d.ray_actor_options for name, d in found.items()} == {
        name: d.ray_actor_options for name, d in cluster.items()
    }
    assert found["SD15"].init_args[0].engine.device == found["TextEncoder"].init_args[0].device.device == "cpu"
    assert claims(settings(device="cpu-with-claims", stages=stages))["SD15"] == 1


def test_device_auto_refuses_what_the_cluster_lacks() -> None:
    stages = {"sd15": {"num_gpus": 1, "replicas": GPUS + 1}}
    with pytest.raises(ValueError, match=rf"claim {GPUS + 1} GPUs .sd15 {GPUS + 1}.*the cluster has {GPUS}"):
        build(settings(stages=stages))


def test_a_stage_may_stay_on_the_cpu() -> None:
    stages = {"text_encoder": {"num_gpus": 0.1, "device": {"device": "cpu"}}, "sd15": {"num_gpus": 0.5}}
    found = claims(settings(stages=stages))
    assert (found["TextEncoder"], found["SD15"]) == (0, 0.5)


def test_options_reach_serve() -> None:
    found = deployments(settings("serve_config.cluster.yaml"))
    sd15 = found["SD15"]
    assert sd15.ray_actor_options["accelerator_type"] == "L4"
    scaling = sd15._deployment_config.autoscaling_config
    assert scaling is not None
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 8)
    assert scaling.policy.policy_function == "deployments.autoscaling.DemandPolicy"
    assert scaling.policy.policy_kwargs == {"target_work_s": 20}
    assert (scaling.upscale_delay_s, scaling.downscale_delay_s, scaling.look_back_period_s) == (5, 600, 15)
    assert sd15.max_ongoing_requests == 256
    assert sd15._deployment_config.graceful_shutdown_timeout_s == 3_660
    assert sd15._deployment_config.request_router_config.max_backoff_s == 0.02
    assert sd15._deployment_config.request_router_config.request_router_class.endswith("ReplicaRouter")
    encoder = found["TextEncoder"]._deployment_config.autoscaling_config
    assert encoder is not None
    assert encoder.target_ongoing_requests == 32
    by_name = found["TextEncoder"]._deployment_config.request_router_config
    assert by_name.request_router_class.endswith("ReplicaRouter")
    assert found["Router"].ray_actor_options["resources"] == {"node:__internal_head__": 0.001}


def test_binding_needs_no_torch(ray_serve: RayCluster) -> None:
    import subprocess
    import sys

    code = "import sys, serve_app.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
