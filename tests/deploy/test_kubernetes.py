"""The chart and the manifests made of it: the shipped configuration, room for it, and no more rights than they need."""

import re
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.serve.schema import ServeDeploySchema

from serve_app.config.check import ServeFile, check_config
from serve_app.config.cluster_file import NodeType, nodes_for, replicas_at_most
from tests.deploy.rendered import CHART, rendered, resources

ROOT = CHART.parents[1]
KUBERNETES = ("1.30", "1.37")


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    return resources(image="example/darkroom:0.1.0")


@pytest.fixture(scope="module")
def service(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    return next(one for one in manifests if one["kind"] == "RayService")


@pytest.fixture
def config(service: dict[str, Any], tmp_path: Path) -> ServeFile:
    path = tmp_path / "serve_config.yaml"
    path.write_text(service["spec"]["serveConfigV2"])
    return check_config(path)


@pytest.fixture
def pods(manifests: list[dict[str, Any]], service: dict[str, Any]) -> dict[str, Any]:
    """Every pod template by its component."""
    cluster = service["spec"]["rayClusterConfig"]
    templates = [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    templates += [one["spec"]["template"] for one in manifests if one["kind"] in ("Job", "StatefulSet")]
    return {template["metadata"]["labels"]["app.kubernetes.io/component"]: template for template in templates}


def merged(base: Any, change: Any) -> Any:
    if isinstance(base, dict) and isinstance(change, dict):
        return base | {key: merged(base.get(key), value) for key, value in change.items()}
    return change


def test_the_manifests_are_the_charts() -> None:
    written = (ROOT / "deploy" / "rayservice.yaml").read_text()
    assert written == rendered(), "python -m tests.deploy.rendered > deploy/rayservice.yaml"


def test_helm_finds_nothing_to_complain_of() -> None:
    found = helm_python.lint(CHART, {"image": "example/darkroom:0.1.0"})
    assert [message for message in found["messages"] if message["severity"] > 1] == []  # 1 is advice


def test_an_image_must_be_named() -> None:
    with pytest.raises(helm_python.HelmRenderError, match=r"image: name the image of deploy/Dockerfile"):
        rendered(image="")


def test_it_serves_the_shipped_configuration_with_the_charts_values(service: dict[str, Any]) -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    shipped = yaml.safe_load((ROOT / "serve_config.cluster.yaml").read_text())
    arguments = shipped["applications"][0]["args"]
    arguments["stages"]["router"] = values["router"]
    shipped["applications"][0]["args"] = merged(arguments, values["args"])
    shipped["proxy_location"] = "EveryNode"
    shipped["http_options"]["host"] = "0.0.0.0"  # noqa: S104
    found = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert found == shipped
    ServeDeploySchema.model_validate(found)


def test_a_value_reaches_the_service_and_the_job_alike() -> None:
    changed = resources(image="example/darkroom:0.1.0", args={"safety": {"threshold": 0.5}})
    service = next(one for one in changed if one["kind"] == "RayService")
    job = next(one for one in changed if one["kind"] == "ConfigMap")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    safety = config["applications"][0]["args"]["safety"]
    assert (safety["threshold"], safety["mode"]) == (0.5, "block")
    assert yaml.safe_load(job["data"]["serve_config.yaml"]) == config


def test_the_check_takes_it_and_it_asks_for_keys(config: ServeFile) -> None:
    access = config.applications[0].args.access
    assert access.keyed
    assert not access.open_to_all


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_takes_every_manifest_and_every_pod(
    version: str, manifests: list[dict[str, Any]], pods: dict[str, Any]
) -> None:
    own = [one for one in manifests if one["kind"] != "RayService"]
    assert {one["kind"] for one in own} == {
        "ConfigMap",
        "Job",
        "NetworkPolicy",
        "PersistentVolumeClaim",
        "PodDisruptionBudget",
        "Service",
        "StatefulSet",
    }
    for one in own:
        kubernetes_validate.validate(one, version, strict=True)
    for name, template in pods.items():
        metadata = {**template["metadata"], "name": name}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        kubernetes_validate.validate(pod, version, strict=True)


def test_rays_autoscaler_reads_the_groups_and_they_hold_every_replica(
    service: dict[str, Any], config: ServeFile
) -> None:
    cluster = service["spec"]["rayClusterConfig"]
    resource = {"metadata": {"name": "darkroom", "namespace": "default"}, "spec": cluster}
    kinds = _derive_autoscaling_config_from_ray_cr(resource)["available_node_types"]
    assert kinds["headgroup"]["resources"]["CPU"] == 0
    assert kinds["l4"]["resources"].items() >= {"CPU": 7, "GPU": 1, "accelerator_type:L4": 1}.items()
    groups = {name: NodeType(kind["resources"], kind["max_workers"]) for name, kind in kinds.items()}
    nodes = nodes_for(replicas_at_most(config.applications[0].args), groups)
    assert nodes["front"] == kinds["front"]["min_workers"] == config.applications[0].args.stages.router.replicas


def test_whoever_talks_to_ray_shows_a_token_and_a_new_head_knows_what_the_old_one_did(
    manifests: list[dict[str, Any]], service: dict[str, Any]
) -> None:
    cluster = service["spec"]["rayClusterConfig"]
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token"}
    host, _, port = cluster["gcsFaultToleranceOptions"]["redisAddress"].partition(":")
    redis = next(one for one in manifests if one["kind"] == "Service")
    assert (redis["metadata"]["name"], redis["spec"]["ports"][0]["port"]) == (host, int(port))


def test_no_pod_has_rights_that_it_does_not_need(pods: dict[str, Any]) -> None:
    assert set(pods) == {"head", "front", "l4", "l40s", "redis", "pull"}
    for name, template in pods.items():
        spec = template["spec"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec.get("automountServiceAccountToken", True) == (name == "head"), name
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}, name


def test_keys_and_passwords_are_where_the_routers_are_and_nowhere_else(pods: dict[str, Any], config: ServeFile) -> None:
    keys_file = config.applications[0].args.access.keys_file
    for name in ("head", "front", "l4", "l40s", "pull"):
        (container,) = pods[name]["spec"]["containers"]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert ("envFrom" in container, str(Path(keys_file or "").parent) in mounts) == ((name == "front",) * 2), name


def test_weights_in_the_image_need_no_volume() -> None:
    baked = resources(image="example/darkroom:0.1.0", weights={"volume": False})
    assert not {"Job", "ConfigMap", "PersistentVolumeClaim"} & {one["kind"] for one in baked}
    assert "weights" not in yaml.safe_dump([one for one in baked if one["kind"] == "RayService"])


def test_the_volume_is_where_the_image_looks_for_weights(pods: dict[str, Any]) -> None:
    folder = re.search(r"HF_HOME=(\S+)", (ROOT / "deploy" / "Dockerfile").read_text())
    assert folder is not None
    for name in ("l4", "l40s", "pull"):
        (container,) = pods[name]["spec"]["containers"]
        assert folder[1] in {mount["mountPath"] for mount in container["volumeMounts"]}, name
