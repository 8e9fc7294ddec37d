"""The shipped configuration files are right, documented where it matters, and safe by default."""

from pathlib import Path

import pytest
import yaml
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
