"""A Ray cluster on this machine: Ray's own autoscaler adds and removes simulated nodes of cluster.yaml's types.

Each node is a raylet with its own workers; GPUs are logical. The cluster lives in namespaces of its own, and its
sockets are reached through relays. Ray's `fake_multi_node` provider is the simulation; everything above it is what runs
on a real cluster.
"""

import asyncio
import json
import secrets
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import yaml

from serve_app.config.overlay import merged
from tests.cluster.namespace import ROOT, Namespace, namespace

T = TypeVar("T")

APP = "darkroom"

_BIN = Path(sys.executable).parent
_HEAD_ID = "f" * 51 + "00000"
_HEAD_TYPE = "ray.head.default"  # the provider's own name of it
_GCS_PORT, _DASHBOARD_PORT = 6379, 8265
_MIB = 1 << 20
# of the provider: what ray up does on real nodes
_UNUSED = {
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "file_mounts_sync_continuously": False,
    "cluster_synced_files": [],
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
    "rsync_exclude": [],
    "rsync_filter": [],
}
_POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica that Serve knows.

    Attributes:
        node: the id of its node; None before it has one.
        state: Serve's word, such as "RUNNING".
    """

    deployment: str
    replica_id: str
    state: str
    node: str | None


class FakeCluster:
    """The cluster that `fake_cluster` starts.

    Args:
        space: the namespaces that it runs in.
        token: Ray's.
    """

    def __init__(self, space: Namespace, token: str) -> None:
        self.space = space
        self.folder = space.folder
        self._token = token

    async def deploy(self, *overlays: Mapping[str, Any]) -> None:
        """`serve deploy` of serve_config.cluster.yaml with the laptop's overlay and those of a test.

        Args:
            overlays: of the application's arguments.
        """
        data = {
            "jobs": {"database_url": f"sqlite+aiosqlite:///{self.folder}/jobs.db"},
            "images": {"url": str(self.folder / "images")},
        }
        paths = []
        for number, arguments in enumerate((data, *overlays)):
            path = self.folder / f"overlay-{number}.yaml"
            path.write_text(yaml.safe_dump({"applications": [{"args": dict(arguments)}]}), encoding="utf-8")
            paths.append(path)
        config = self.folder / "serve_config.yaml"
        text = merged(ROOT / "serve_config.cluster.yaml", ROOT / "overlay.laptop.yaml", *paths)
        config.write_text(text, encoding="utf-8")
        await asyncio.to_thread(self.space.run, _BIN / "serve", "deploy", config)

    def service(self) -> httpx.AsyncClient:
        """A client of the service."""
        return _client(self.socket)

    async def ready(self) -> bool:
        """Whether the service says that it can draw; a stage may sleep."""
        async with self.service() as client:
            return (await client.get("/ready")).status_code == 200

    async def runs(self, least: Mapping[str, int]) -> bool:
        """Whether as many replicas run, by deployment."""
        running = Counter(replica.deployment for replica in await self.replicas() if replica.state == "RUNNING")
        return all(running[deployment] >= count for deployment, count in least.items())

    @property
    def socket(self) -> Path:
        """Of the service, for a client that a test makes itself."""
        return self.folder / "service.sock"

    async def nodes(self) -> dict[str, str]:
        """The type of each worker node that is alive, by its id."""
        answer = await self._of_dashboard("/nodes?view=summary")
        raylets = [node["raylet"] for node in answer["data"]["summary"]]
        return {
            raylet["nodeId"]: raylet["nodeTypeName"]
            for raylet in raylets
            if raylet["state"] == "ALIVE" and not raylet["isHeadNode"]
        }

    async def replicas(self, deployment: str | None = None) -> list[Replica]:
        """Those of one deployment, or all."""
        answer = await self._of_dashboard("/api/serve/applications/")
        application = answer["applications"].get(APP, {"deployments": {}})
        return [
            Replica(name, replica["replica_id"], replica["state"], replica.get("node_id"))
            for name, details in application["deployments"].items()
            for replica in details["replicas"]
            if deployment in (None, name)
        ]

    def kill_node(self, node_id: str) -> None:
        """SIGKILL to a node's raylet and all that it started, as a machine that loses its power."""
        [raylet] = [
            process
            for process in self.space.processes()
            if process.name() == "raylet" and f"--node_id={node_id}" in process.cmdline()
        ]
        for process in (raylet, *raylet.children(recursive=True)):
            _kill(process)

    def replica_processes(self, deployment: str) -> list[psutil.Process]:
        """The processes of a deployment's replicas."""
        title = f"ray::ServeReplica:{APP}:{deployment}"
        return [process for process in self.space.processes() if _title(process) == title]

    def images_drawn(self, node_id: str) -> int:
        """Images of SD15 whose drawing ended on a node."""
        return sum(
            record["node_id"] == node_id and record["message"].startswith("CALL denoise OK")
            for record in self.log_records("SD15")
        )

    def log_records(self, deployment: str) -> Iterator[dict[str, Any]]:
        """The lines of the replicas' logs, replica by replica. `deployment` may be "*"."""
        for path in sorted(self.folder.glob(f"ray/session_2*/logs/serve/replica_{APP}_{deployment}_*.log")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                if line.startswith("{"):
                    yield json.loads(line)

    async def _of_dashboard(self, path: str) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._token}"}
        async with _client(self.folder / "dashboard.sock", headers=headers) as client:
            content: dict[str, Any] = (await client.get(path)).raise_for_status().json()
            return content


async def until(condition: Callable[[], Awaitable[T]], patience_s: float, what: str) -> T:
    """The condition's first true value. Raises TimeoutError after `patience_s`, with `what` didn't come true."""
    since = time.monotonic()
    last: T | None = None
    while time.monotonic() < since + patience_s:
        try:
            last = await condition()
        except httpx.TransportError:  # who answers is starting, or changes over
            pass
        else:
            if last:
                return last
        await asyncio.sleep(_POLL_S)
    raise TimeoutError(f"{what}: not within {patience_s:g} s; last: {last}")


@contextmanager
def fake_cluster(
    folder: Path, *, idle_minutes: float = 0.1, environment: Mapping[str, str] | None = None
) -> Iterator[FakeCluster]:
    """Start a head with the autoscaler; end all of it after the block.

    Args:
        folder: of its files, empty; its path must be short (sockets).
        idle_minutes: after which a node without a replica leaves, in place of cluster.yaml's.
        environment: of Ray and so of the service.

    Raises:
        NoNamespaces: this machine has none.
    """
    token = secrets.token_hex(32)
    token_path = folder / "token"
    token_path.touch(0o600)
    token_path.write_text(token, encoding="utf-8")
    config = folder / "ray_bootstrap_config.yaml"
    config.write_text(yaml.safe_dump(_ray_config(idle_minutes)), encoding="utf-8")
    variables = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "HF_HUB_OFFLINE": "1",
        **(environment or {}),
    }
    with namespace(folder, variables) as space:
        head = _node_types()[_shipped()["head_node_type"]]["resources"]
        space.run(
            _BIN / "ray",
            "start",
            "--head",
            f"--port={_GCS_PORT}",
            f"--num-cpus={head['CPU']}",
            f"--object-store-memory={200 * _MIB}",
            "--node-ip-address=127.0.0.1",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={_DASHBOARD_PORT}",
            f"--autoscaling-config={config}",
        )
        cluster = FakeCluster(space, token)
        space.start(
            sys.executable,
            "-m",
            "tests.cluster.relay",
            f"unix:{folder}/service.sock=tcp:{_shipped_port()}",
            f"unix:{folder}/dashboard.sock=tcp:{_DASHBOARD_PORT}",
            log="relay.log",
        )
        yield cluster


def _ray_config(idle_minutes: float) -> dict[str, Any]:
    """cluster.yaml on simulated nodes: its node types and limits, the provider's form."""
    shipped = _shipped()
    types = {
        _HEAD_TYPE if name == shipped["head_node_type"] else name: {
            "resources": {**node["resources"], "object_store_memory": 100 * _MIB},
            "labels": node.get("labels", {}),
            "min_workers": node.get("min_workers", 0),
            "max_workers": node["max_workers"],
            "node_config": {},
        }
        for name, node in _node_types().items()
    }
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
        "head_node_id": _HEAD_ID,
        "gcs_address": f"127.0.0.1:{_GCS_PORT}",
    }
    return {
        **_UNUSED,
        "cluster_name": shipped["cluster_name"],
        "max_workers": shipped["max_workers"],
        "upscaling_speed": shipped["upscaling_speed"],
        "idle_timeout_minutes": idle_minutes,
        "provider": provider,
        "available_node_types": types,
        "head_node_type": _HEAD_TYPE,
    }


def _shipped() -> dict[str, Any]:
    shipped: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))
    return shipped


def _node_types() -> dict[str, dict[str, Any]]:
    types: dict[str, dict[str, Any]] = _shipped()["available_node_types"]
    return types


def _shipped_port() -> int:
    config = yaml.safe_load((ROOT / "serve_config.cluster.yaml").read_text(encoding="utf-8"))
    port: int = config["http_options"]["port"]
    return port


def _client(socket: Path, headers: Mapping[str, str] | None = None) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(uds=str(socket))
    return httpx.AsyncClient(transport=transport, base_url="http://cluster", headers=headers, timeout=60)


def _title(process: psutil.Process) -> str:
    """What Ray calls a worker's process, without the method that it is in."""
    try:
        return " ".join(process.cmdline()).split(".")[0].strip()
    except psutil.Error:  # it has ended
        return ""


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:  # it went with the one before
        return
