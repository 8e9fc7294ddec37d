"""The shipped configuration files are right, documented where it matters, and safe by default."""

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from deployments.config import DENOISING_STAGES
from serve_app.config.check import ServeFile, check_config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(ROOT.glob("serve_config*.yaml"))


@pytest.fixture(params=CONFIGS, ids=lambda path: path.name)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def config(path: Path) -> ServeFile:
    return check_config(path)


def test_all_three_are_there() -> None:
    assert [path.name for path in CONFIGS] == [
        "serve_config.cluster.yaml",
        "serve_config.gpu.yaml",
        "serve_config.yaml",
    ]


def test_serve_takes_it(path: Path) -> None:
    ServeDeploySchema.model_validate(yaml.safe_load(path.read_text()))


def test_listens_on_loopback_only(config: ServeFile) -> None:
    assert config.http_options.host == "127.0.0.1"


def test_a_response_may_live_as_long_as_its_job(config: ServeFile) -> None:
    assert config.http_options.request_timeout_s is None


def test_draining_outlasts_the_longest_job(config: ServeFile) -> None:
    settings = config.applications[0].args
    for stage in DENOISING_STAGES:
        timeout = getattr(settings.stages, stage).graceful_shutdown_timeout_s
        assert timeout > settings.limits.max_timeout_s


def test_safety_is_on(config: ServeFile) -> None:
    assert config.applications[0].args.safety.mode == "block"


@pytest.mark.parametrize("name", ["serve_config.yaml", "serve_config.gpu.yaml"])
def test_all_stages_fit_one_gpu(name: str) -> None:
    stages = check_config(ROOT / name).applications[0].args.stages
    assert 0 < sum(getattr(stages, stage).num_gpus for stage in type(stages).model_fields) <= 1


def test_default_fits_one_core() -> None:
    stages = check_config(ROOT / "serve_config.yaml").applications[0].args.stages
    assert sum(getattr(stages, stage).num_cpus for stage in type(stages).model_fields) <= 1


def test_default_downloads_nothing() -> None:
    settings = check_config(ROOT / "serve_config.yaml").applications[0].args
    sources = [model.source for model in settings.models.values()] + [settings.safety.classifier]
    assert all(source is not None and source.startswith("package:demo_models/") for source in sources)


def test_cluster_has_a_node_type_for_every_claim() -> None:
    stages = check_config(ROOT / "serve_config.cluster.yaml").applications[0].args.stages
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    types = [node["resources"] for node in cluster["available_node_types"].values()]
    for stage in type(stages).model_fields:
        replica = getattr(stages, stage)
        needed = {"CPU": replica.num_cpus, "GPU": replica.num_gpus}
        if replica.accelerator_type:
            needed[f"accelerator_type:{replica.accelerator_type}"] = 0.001
        assert any(all(node.get(name, 0) >= amount for name, amount in needed.items()) for node in types), stage


def test_cluster_has_workers_enough_for_every_replica() -> None:
    stages = check_config(ROOT / "serve_config.cluster.yaml").applications[0].args.stages
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    wanted: dict[str, float] = {}
    for stage in type(stages).model_fields:
        replica = getattr(stages, stage)
        if replica.accelerator_type and replica.autoscaling:
            wanted.setdefault(replica.accelerator_type, 0.0)
            wanted[replica.accelerator_type] += replica.num_gpus * replica.autoscaling.max_replicas
    for accelerator, gpus in wanted.items():
        nodes = [
            node["max_workers"] * node["resources"]["GPU"]
            for node in cluster["available_node_types"].values()
            if f"accelerator_type:{accelerator}" in node["resources"]
        ]
        assert sum(nodes) >= gpus


def test_cluster_file_is_valid_for_rays_launcher() -> None:
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(cluster))


def test_cluster_asks_for_the_token_everywhere() -> None:
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in cluster[key][-1]
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]
