"""What all tests share: an environment without network or telemetry, and the tiny checkpoints.

Sets the environment before anything imports torch, transformers or Ray.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
# certificates are read when one is checked: the tests' many clients would each read all of them at once
os.environ["SSL_CERT_DIR"] = "/etc/ssl/certs"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # the processes share the cores already

from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.ray_cluster import RayCluster

# warnings of others that no code of ours can avoid; each with its reason
THIRD_PARTY_WARNINGS = (
    # diffusers' schedulers hand torch tensors to np.array, and torch's __array__ has no copy keyword yet
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    # its KDPM2 and DEIS schedulers take np.log of torch tensors, and torch's __array_wrap__ has the old signature
    "ignore:__array_wrap__ must accept context and return_scalar arguments:DeprecationWarning",
)


# a busy machine is slow: no test is about how long an example takes
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")

_RAY = pytest.StashKey[ExitStack]()


def pytest_configure(config: pytest.Config) -> None:
    for line in THIRD_PARTY_WARNINGS:
        config.addinivalue_line("filterwarnings", line)
    config.stash[_RAY] = ExitStack()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those on the Ray cluster come first: together they take longest, and then the cluster can go."""
    items.sort(key=lambda item: not _on_ray(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, None, None]:
    """A cluster that waits takes a quarter of a core: it is stopped with its last test, not at the session's end."""
    try:
        yield
    finally:
        if _on_ray(item) and (nextitem is None or not _on_ray(nextitem)):
            item.config.stash[_RAY].close()


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_RAY].close()  # after a session that was cut short


def _on_ray(item: pytest.Item) -> bool:
    return item.get_closest_marker("ray") is not None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`-n 2` keeps a module in one process, for its fixtures' sake, and so all that shares the Ray cluster."""
    from tests.scheduling import ByModule

    return ByModule(config, log)


@pytest.fixture(scope="session")
def tiny_sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_checkpoints import write_tiny_sd15

    return write_tiny_sd15(tmp_path_factory.mktemp("checkpoints") / "tiny-sd15")


@pytest.fixture(scope="session")
def tiny_sd2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_checkpoints import write_tiny_sd2

    return write_tiny_sd2(tmp_path_factory.mktemp("checkpoints") / "tiny-sd2")


@pytest.fixture(scope="session")
def tiny_sd15_inpainting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_checkpoints import write_tiny_sd15_inpainting

    return write_tiny_sd15_inpainting(tmp_path_factory.mktemp("checkpoints") / "tiny-sd15-inpainting")


@pytest.fixture(scope="session")
def tiny_lcm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_checkpoints import write_tiny_lcm

    return write_tiny_lcm(tmp_path_factory.mktemp("checkpoints") / "tiny-lcm")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_checkpoints import write_tiny_sdxl

    return write_tiny_sdxl(tmp_path_factory.mktemp("checkpoints") / "tiny-sdxl")


@pytest.fixture(scope="session")
def tiny_sdxl_refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_checkpoints import write_tiny_sdxl_refiner

    return write_tiny_sdxl_refiner(tmp_path_factory.mktemp("checkpoints") / "tiny-sdxl-refiner")


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_checkpoints import write_tiny_vit

    return write_tiny_vit(tmp_path_factory.mktemp("checkpoints") / "tiny-vit")


@pytest.fixture(scope="session")
def tiny_safety_checker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_checkpoints import write_tiny_safety_checker

    return write_tiny_safety_checker(tmp_path_factory.mktemp("checkpoints") / "tiny-safety-checker")


@pytest.fixture(scope="session")
def while_ray_runs(pytestconfig: pytest.Config) -> ExitStack:
    """What ends with the last test on Ray, before the session does."""
    return pytestconfig.stash[_RAY]


@pytest.fixture(scope="session")
def ray_serve(while_ray_runs: ExitStack) -> "RayCluster":
    """Ray and Serve for all tests on them, which delete the applications they deploy."""
    from tests.ray_cluster import ray_cluster

    return while_ray_runs.enter_context(ray_cluster())


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """Chromium; a test that wants it is skipped where there is none."""
    from tests.chromium import chromium

    with chromium() as one:
        yield one
