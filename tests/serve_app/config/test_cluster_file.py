"""A cluster file against the service that is to run on it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.config.check import check_config
from serve_app.config.cluster_file import NodeType, Unplaceable, check_cluster, nodes_for, replicas_at_most
from serve_app.config.settings import Settings
from tests.serve_app.cli.command_line import darkroom

ROOT = Path(__file__).parents[3]

GPU = {"CPU": 8.0, "GPU": 1.0}


def shipped(**changes: Any) -> Settings:
    """The shipped cluster configuration's settings, with `changes` of its stages."""
    values = check_config(ROOT / "serve_config.cluster.yaml").applications[0].args.model_dump(mode="json")
    for stage, change in changes.items():
        values["stages"][stage] |= change
    return Settings.model_validate(values)


def written(folder: Path, **changes: Any) -> Path:
    """cluster.yaml with an image, and with `changes` at the top or of its node types."""
    content = yaml.safe_load((ROOT / "cluster.yaml").read_text().replace("ami-FILL-IN", "ami-0123456789abcdef0"))
    for key, change in changes.items():
        if key in content["available_node_types"]:
            content["available_node_types"][key] |= change
        else:
            content[key] = change
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_fractions_share_a_node() -> None:
    kinds = {"gpu": NodeType(GPU, 5)}
    halves = [("a", {"CPU": 1.0, "GPU": 0.5})] * 8
    small = [("b", {"CPU": 0.5, "GPU": 0.1})] * 2
    assert nodes_for(iter([*small, *halves]), kinds) == {"gpu": 5}


def test_cpus_run_out_too() -> None:
    assert nodes_for(iter([("a", {"CPU": 5.0, "GPU": 0.1})] * 3), {"gpu": NodeType(GPU, 9)}) == {"gpu": 3}


def test_a_claim_that_no_node_has() -> None:
    with pytest.raises(Unplaceable, match=r"no type of node has what a replica of a claims \(GPU 2\)"):
        nodes_for(iter([("a", {"GPU": 2.0})]), {"gpu": NodeType(GPU, 9)})


def test_more_replicas_than_nodes() -> None:
    with pytest.raises(Unplaceable, match=r"gpu \(at most 2\): too few for max_replicas of a"):
        nodes_for(iter([("a", {"GPU": 1.0})] * 3), {"gpu": NodeType(GPU, 2)})


def test_the_other_type_takes_what_is_over() -> None:
    kinds = {"a": NodeType(GPU, 1), "b": NodeType(GPU, 9)}
    assert nodes_for(iter([("stage", {"GPU": 1.0})] * 3), kinds) == {"a": 1, "b": 2}


def test_every_replica_claims_what_serve_books_for_it() -> None:
    found: dict[str, list[Any]] = {}
    for stage, resources in replicas_at_most(shipped(sdxl_base={"autoscaling": None, "replicas": 3})):
        found.setdefault(stage, []).append(resources)
    assert found["router"] == [{"CPU": 1.0, "node:__internal_head__": 0.001}]
    assert found["sdxl_base"] == [{"CPU": 1.0, "GPU": 1.0, "accelerator_type:L40S": 0.001}] * 3
    assert "upscaler" not in found


def test_fewer_workers_than_max_replicas_need(tmp_path: Path) -> None:
    path = written(tmp_path, max_workers=16)
    problems = check_cluster(path, shipped())
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if text.startswith("max_workers"))
    assert problems == [
        f"{path}:{line}: max_workers: 16, but all max_replicas of the service take 17 (worker_l4 5, worker_l40s 12)"
    ]


def test_fewer_of_one_type(tmp_path: Path) -> None:
    (problem,) = check_cluster(written(tmp_path, worker_l40s={"max_workers": 11}), shipped())
    assert "available_node_types: worker_l40s (at most 11): too few for max_replicas of sdxl_" in problem


def test_other_clouds_have_other_images(tmp_path: Path) -> None:
    path = written(tmp_path, provider={"type": "gcp"}, worker_l4={"node_config": {}})
    assert check_cluster(path, shipped()) == []


@pytest.mark.parametrize("content", ["- a list", "head_node_type: head", "a: b: c"])
def test_another_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(content)
    (problem,) = check_cluster(path, shipped())
    assert problem.startswith(f"{path}: ")


def test_the_command_line_shows_them(tmp_path: Path) -> None:
    config = ROOT / "serve_config.cluster.yaml"
    small = darkroom("config", "check", config, "--cluster", written(tmp_path, max_workers=16))
    assert (small.exit_code, "max_workers: 16" in small.stderr) == (1, True)
    assert darkroom("config", "check", config, "--cluster", written(tmp_path)).exit_code == 0
