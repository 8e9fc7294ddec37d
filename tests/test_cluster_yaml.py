"""cluster.yaml starts: Ray's launcher and (moto's) AWS take it, and its machines hold the shipped service."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_LAUNCH_CONFIG, TAG_RAY_NODE_KIND, TAG_RAY_NODE_NAME, TAG_RAY_NODE_STATUS

from serve_app.config.check import check_config
from serve_app.config.cluster_file import check_cluster

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster.yaml"
IMAGE = "ami-0123456789abcdef0"


@pytest.fixture
def cluster() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(CLUSTER.read_text())
    return content


@pytest.fixture
def filled_in(tmp_path: Path) -> Path:
    """cluster.yaml as its user leaves it: with an image."""
    path = tmp_path / "cluster.yaml"
    path.write_text(CLUSTER.read_text().replace("ami-FILL-IN", IMAGE))
    return path


def test_it_is_refused_until_an_image_is_filled_in(filled_in: Path) -> None:
    settings = check_config(ROOT / "serve_config.cluster.yaml").applications[0].args
    problems = check_cluster(CLUSTER, settings)
    assert len(problems) == 1
    assert "ImageId: 'ami-FILL-IN' is no image: fill in an AMI" in problems[0]
    assert check_cluster(filled_in, settings) == []


def test_all_nodes_together_are_what_each_type_may_have(cluster: dict[str, Any]) -> None:
    assert cluster["max_workers"] == sum(kind["max_workers"] for kind in cluster["available_node_types"].values())


def test_rays_launcher_takes_it_and_adds_no_set_up_of_its_own(cluster: dict[str, Any]) -> None:
    prepared = prepare_config(yaml.safe_load(CLUSTER.read_text()))
    validate_config(prepared)
    assert prepared["head_setup_commands"] == prepared["worker_setup_commands"] == cluster["setup_commands"]
    assert any("pip install" in command and "aws]" in command for command in cluster["setup_commands"])


def test_nothing_is_copied_but_what_is_named_and_published(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"].pop("/home/ubuntu/.ray/auth_token") == "~/.ray/auth_token"
    for target, source in cluster["file_mounts"].items():
        assert target == f"/home/ubuntu/darkroom/{source}"
        listed = ["git", "ls-files", "--error-unmatch", source]
        assert subprocess.run(listed, cwd=ROOT, check=False, capture_output=True).returncode == 0, source


def test_what_is_copied_is_enough(cluster: dict[str, Any], tmp_path: Path) -> None:
    del cluster["file_mounts"]["/home/ubuntu/.ray/auth_token"]
    for source in map(ROOT.joinpath, cluster["file_mounts"].values()):
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, tmp_path / source.name)
    command = [sys.executable, "-m", "serve_app.cli", "config", "check", "serve_config.cluster.yaml"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)


def test_the_token_is_asked_for_everywhere(cluster: dict[str, Any]) -> None:
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert "RAY_AUTH_MODE=token" in cluster[key][-1]
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """AWS as moto has it. The head's role is there already, for whose spreading Ray would wait half a minute."""
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes the SSH key there
    (tmp_path / ".ssh").mkdir()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    with mock_aws():
        iam = boto3.resource("iam", region_name="eu-central-1")
        iam.create_role(RoleName="ray-autoscaler-v1", AssumeRolePolicyDocument="{}")
        profile = iam.create_instance_profile(InstanceProfileName="ray-autoscaler-v1")
        profile.add_role(RoleName="ray-autoscaler-v1")
        yield


@pytest.mark.usefixtures("aws")
def test_aws_starts_a_machine_of_each_type_with_the_resources_that_are_promised(
    filled_in: Path, cluster: dict[str, Any]
) -> None:
    started = bootstrap_aws(prepare_config(yaml.safe_load(filled_in.read_text())))
    provider = AWSNodeProvider(started["provider"], started["cluster_name"])
    for name, kind in started["available_node_types"].items():
        tags = {
            TAG_RAY_NODE_NAME: name,
            TAG_RAY_NODE_KIND: "worker",
            TAG_RAY_LAUNCH_CONFIG: "none",
            TAG_RAY_NODE_STATUS: "up-to-date",
        }
        provider.create_node(kind["node_config"], tags, 1)
    machines = boto3.resource("ec2", region_name="eu-central-1").instances.all()
    promised = {kind["node_config"]["InstanceType"] for kind in cluster["available_node_types"].values()}
    assert {(machine.image_id, machine.instance_type) for machine in machines} == {(IMAGE, one) for one in promised}

    silent = yaml.safe_load(filled_in.read_text())
    for kind in silent["available_node_types"].values():
        del kind["resources"]
    found = AWSNodeProvider.fillout_available_node_types_resources(silent)["available_node_types"]
    for name, kind in cluster["available_node_types"].items():
        assert {key: found[name]["resources"].get(key) for key in kind["resources"]} == kind["resources"], name
