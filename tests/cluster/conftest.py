"""One simulated cluster for all tests here; each deploys what it needs on it, over what the last one had."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.fake_cluster import FakeCluster, fake_cluster
from tests.cluster.namespace import NoNamespaces
from tests.cluster.overlays import BUCKET_PORT


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out those that take long, but for `make cluster`, which names the marker."""
    if "cluster" in config.option.markexpr:
        return
    for item in items:
        marker = item.get_closest_marker("cluster")
        if marker is not None and marker.kwargs.get("long"):
            item.add_marker(pytest.mark.skip(reason="takes minutes on simulated nodes: `make cluster` runs it"))


@pytest.fixture(scope="session")
def cluster() -> Iterator[FakeCluster]:
    bucket = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{BUCKET_PORT}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    with tempfile.TemporaryDirectory(prefix="dkc-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        try:
            with fake_cluster(Path(folder), environment=bucket) as started:
                yield started
        except NoNamespaces as reason:
            pytest.skip(f"a simulated cluster needs namespaces of its own: {reason}")
