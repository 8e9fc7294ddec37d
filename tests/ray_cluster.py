"""One real Ray cluster with Serve for the whole test session: logical CPUs and GPUs, loopback, a private folder.

Knows nothing of the deployments under test. Stops only what it started.
"""

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CPUS = 16
GPUS = 4
ACCELERATORS = ("L4", "L40S")  # the types that serve_config.cluster.yaml asks for


@dataclass(frozen=True, slots=True)
class RayCluster:
    """url: of Serve's HTTP proxy. address: of the cluster's control store, for `ray.init(address=…)`.

    logs: the folder where Ray keeps what its processes write.
    """

    url: str
    address: str
    logs: Path


@contextmanager
def ray_cluster() -> Iterator[RayCluster]:
    """Start Ray and Serve, and stop them."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray spells it so
    os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "60"  # a busy machine is slow, not broken
    import ray
    from ray import serve

    folder = tempfile.mkdtemp(prefix="darkroom-ray-", dir="/tmp")  # sockets need a short path
    try:
        context = ray.init(
            address="local",
            num_cpus=CPUS,
            num_gpus=GPUS,
            resources={f"accelerator_type:{name}": 1 for name in ACCELERATORS},
            object_store_memory=256 << 20,
            include_dashboard=False,
            log_to_driver=False,
            _system_config={"metrics_report_interval_ms": 500},
            _temp_dir=folder,
        )
        port = free_port()
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        logs = Path(context.address_info["session_dir"]) / "logs"
        yield RayCluster(f"http://127.0.0.1:{port}", context.address_info["gcs_address"], logs)
    finally:
        if ray.is_initialized():
            serve.shutdown()
            ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """A TCP port that nobody on this machine listens on at the moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
