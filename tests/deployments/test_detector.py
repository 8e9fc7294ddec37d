"""The detector as a Serve deployment: what it finds, and whose file it is that is refused."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.handle import DeploymentHandle

from deployments.config import DetectorStageSettings
from deployments.detector import Detector
from deployments.engine.config import DetectorSettings, DeviceSettings
from deployments.engine.detection.detector import ResidentDetectors
from deployments.engine.detection.folder import DetectorFolder
from deployments.engine.errors import CheckpointError, DetectorRefused
from deployments.engine.types import DetectionRequest, Detections
from tests.detectors import tiny_network, write_detector
from tests.ray_cluster import RayCluster

pytestmark = pytest.mark.ray

APP = "detector"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("detectors")
    for seed, name in enumerate(("one", "other")):
        write_detector(made / f"{name}.safetensors", tiny_network(seed))
    write_detector(made / "damaged.safetensors", tiny_network(), widths="8,8,16,24")
    return made


@pytest.fixture(scope="module")
def handle(ray_serve: RayCluster, folder: Path) -> Iterator[DeploymentHandle]:
    settings = DetectorStageSettings(device=DeviceSettings(cpu_threads=1))
    deployment = serve.deployment(Detector).options(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=64)
    yield serve.run(deployment.bind(settings, DetectorSettings(folder=str(folder))), name=APP, route_prefix=None)
    serve.delete(APP)


def requests() -> list[DetectionRequest]:
    random = np.random.default_rng(3)
    sizes = [(48 + 8 * (number % 3), 64 + 40 * (number % 2)) for number in range(8)]
    return [
        DetectionRequest(name, random.integers(0, 256, (*size, 3), np.uint8), 0.4)
        for size in sizes
        for name in ("one", "other")
    ]


async def test_each_image_gets_what_is_in_it(handle: DeploymentHandle, folder: Path) -> None:
    found: list[Detections] = await asyncio.gather(*[handle.detect.remote(request) for request in requests()])
    detectors = ResidentDetectors(torch.device("cpu"), torch.float32)
    for request, result in zip(requests(), found, strict=True):
        source = DetectorFolder(str(folder)).find(request.detector)
        assert result == detectors.detect(source, request.image, request.confidence)
    assert len({result.detector_hash for result in found}) == 2
    assert any(result.detections for result in found)


def test_what_cannot_be_used_fails_alone(handle: DeploymentHandle) -> None:
    (request, *_) = requests()
    for name, error in (("nothing", DetectorRefused), ("damaged", CheckpointError)):
        with pytest.raises(RayTaskError) as raised:
            handle.detect.remote(DetectionRequest(name, request.image, 0.5)).result()
        assert isinstance(raised.value.cause, error)
    assert handle.detect.remote(request).result().detector_hash


def test_describes_itself(handle: DeploymentHandle) -> None:
    description = handle.describe.remote().result()
    assert (description.name, description.device, description.claim) == ("Detector", "cpu", 0)
    assert set(description.checkpoints) <= {"one", "other"}
