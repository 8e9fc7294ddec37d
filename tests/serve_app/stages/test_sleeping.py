"""Asking whether a stage can serve wakes none that sleeps, also while Serve's controller is too busy to answer."""

import signal
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.stages.readiness import Readiness, StageState

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_serve")]

_APP = "sleeping"


@serve.deployment(autoscaling_config={"min_replicas": 0, "max_replicas": 1}, ray_actor_options={"num_cpus": 0})
class Sleeper:
    async def describe(self) -> None:
        raise AssertionError("nobody may ask it")


@serve.deployment(ray_actor_options={"num_cpus": 0})
class Front:
    def __init__(self, sleeper: DeploymentHandle[Any]) -> None:
        self._readiness = Readiness({"sd15": sleeper})

    async def stages(self) -> dict[str, StageState]:
        return await self._readiness.stages()


@pytest.fixture
def front() -> Iterator[DeploymentHandle[Any]]:
    yield serve.run(Front.bind(Sleeper.bind()), name=_APP, route_prefix=None)
    serve.delete(_APP)


@pytest.fixture
def controller() -> psutil.Process:
    """Of this session's Ray: it descends from this process."""
    [found] = [
        child
        for child in psutil.Process().children(recursive=True)
        if " ".join(child.cmdline()).startswith("ray::ServeController")
    ]
    return found


def test_a_busy_controller_wakes_nobody(front: DeploymentHandle[Any], controller: psutil.Process) -> None:
    asleep = {"Sleeper": StageState("asleep", None, 0, None)}
    assert front.stages.remote().result() == asleep
    controller.send_signal(signal.SIGSTOP)
    try:
        seconds = 0.0
        while seconds < 2:  # an answer in less is one that was known already
            since = time.monotonic()
            assert front.stages.remote().result(timeout_s=60) == asleep
            seconds = time.monotonic() - since
    finally:
        controller.send_signal(signal.SIGCONT)
    assert front.stages.remote().result(timeout_s=60) == asleep
