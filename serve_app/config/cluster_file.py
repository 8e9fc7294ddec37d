"""Checks a cluster file of Ray's launcher (cluster.yaml) against the service that is to run on it.

Ray starts a cluster that is too small for `max_replicas` without a word: replicas then wait for nodes that never come.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from serve_app.config.claims import Claims
from serve_app.config.settings import Settings
from serve_app.config.yaml_lines import line_of

Resources = Mapping[str, float]
"""Amounts of Ray's resources by name: CPU, GPU, accelerator_type:L4."""

_AMI = re.compile(r"ami-[0-9a-f]{8,17}")
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class NodeType:
    """A kind of node. resources: what one node offers. most: nodes that there may be."""

    resources: Resources
    most: int


class Unplaceable(ValueError):
    """A replica for which there is no node, however many of the allowed ones are started."""


def check_cluster(path: Path, settings: Settings) -> list[str]:
    """Problems of a cluster file, each as "file:line: key: message"; OSError if it can't be read.

    Args:
        path: the cluster file, as `ray up` takes it.
        settings: of the service that the cluster is for.
    """
    text = path.read_text(encoding="utf-8")
    try:
        root: yaml.Node = yaml.compose(text, yaml.SafeLoader)  # type: ignore[assignment]
        content = yaml.safe_load(text)
        head, node_types = content["head_node_type"], content["available_node_types"]
        most = {name: 1 if name == head else kind.get("max_workers", 0) for name, kind in node_types.items()}
        kinds = {name: NodeType(kind["resources"], most[name]) for name, kind in node_types.items()}
    except yaml.YAMLError as error:
        return [f"{path}: invalid YAML: {error}"]
    except (KeyError, TypeError, AttributeError) as error:
        return [
            f"{path}: not a cluster file of Ray's launcher with available_node_types and their resources: {error!r}"
        ]

    def problem(keys: Sequence[str], message: str) -> str:
        return f"{path}:{line_of(root, keys)}: {'.'.join(keys)}: {message}"

    problems = []
    if content.get("provider", {}).get("type") == "aws":
        images = {
            str(kind.get("node_config", {}).get("ImageId", "")): name for name, kind in reversed(node_types.items())
        }
        problems += [
            problem(
                ("available_node_types", name, "node_config", "ImageId"),
                f"{image!r} is no image: fill in an AMI of your region (docs/cluster.md says how to find one)",
            )
            for image, name in images.items()
            if not _AMI.fullmatch(image)
        ]
    kinds[head] = NodeType({**kinds[head].resources, "node:__internal_head__": 1.0}, 1)
    try:
        nodes = nodes_for(replicas_at_most(settings), kinds)
    except Unplaceable as error:
        return [*problems, problem(("available_node_types",), str(error))]
    workers = {name: count for name, count in nodes.items() if name != head and count}
    if sum(workers.values()) > content["max_workers"]:
        listed = ", ".join(f"{name} {count}" for name, count in workers.items())
        message = (
            f"{content['max_workers']}, but all max_replicas of the service take {sum(workers.values())} ({listed})"
        )
        problems.append(problem(("max_workers",), message))
    return problems


def replicas_at_most(settings: Settings) -> Iterator[tuple[str, Resources]]:
    """The stage and the resources of every replica that there may be at once, the routers' included."""
    claims = Claims(settings, gpus=1.0).gpus
    started = settings.started_stages()
    stages = [("router", settings.stages.router, 0.0), *((name, started[name], claims[name]) for name in started)]
    for name, replica, gpus in stages:
        resources = {"CPU": replica.num_cpus, "GPU": gpus, **replica.resources}
        if gpus and replica.accelerator_type is not None:
            resources[f"accelerator_type:{replica.accelerator_type}"] = 0.001  # what Ray books for it
        scaling = replica.autoscaling
        for _ in range(replica.replicas if scaling is None else scaling.max_replicas):
            yield name, {resource: amount for resource, amount in resources.items() if amount}


def nodes_for(replicas: Iterator[tuple[str, Resources]], kinds: Mapping[str, NodeType]) -> dict[str, int]:
    """How many nodes of each kind hold the replicas, packed tightly: the largest first, each on the first with room.

    Raises Unplaceable. Ray places them as they come, and may need more.
    """
    nodes: list[tuple[str, dict[str, float]]] = []
    counts = dict.fromkeys(kinds, 0)
    for stage, needed in sorted(replicas, key=lambda replica: -replica[1].get("GPU", 0.0)):
        room = next((free for _, free in nodes if _fits(needed, free)), None)
        if room is None:
            kind = _kind_for(stage, needed, kinds, counts)
            counts[kind] += 1
            room = dict(kinds[kind].resources)
            nodes.append((kind, room))
        for resource, amount in needed.items():
            room[resource] -= amount
    return counts


def _kind_for(stage: str, needed: Resources, kinds: Mapping[str, NodeType], counts: Mapping[str, int]) -> str:
    """The first kind of node that can hold a replica and of which one more may be started."""
    fitting = [name for name, kind in kinds.items() if _fits(needed, kind.resources)]
    for name in fitting:
        if counts[name] < kinds[name].most:
            return name
    claim = ", ".join(f"{resource} {amount:g}" for resource, amount in needed.items())
    if not fitting:
        raise Unplaceable(f"no type of node has what a replica of {stage} claims ({claim})")
    full = " and ".join(f"{name} (at most {kinds[name].most})" for name in fitting)
    raise Unplaceable(f"{full}: too few for max_replicas of {stage}")


def _fits(needed: Resources, free: Resources) -> bool:
    return all(free.get(resource, 0.0) >= amount - _ROUNDING for resource, amount in needed.items())
