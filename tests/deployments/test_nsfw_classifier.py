"""The classifier of unsafe images as a Serve deployment: shared batches, one score an image."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.handle import DeploymentHandle

from deployments.config import ClassifierSettings
from deployments.engine.config import DeviceSettings
from deployments.engine.safety_classifier import ImageClassifier
from deployments.engine.types import Pixels
from deployments.nsfw_classifier import NSFWClassifier
from tests.ray_cluster import RayCluster

pytestmark = pytest.mark.ray

APP = "nsfw-classifier"
THRESHOLD = 0.5


@pytest.fixture(scope="module")
def handle(ray_serve: RayCluster, tiny_vit: Path, tiny_safety_checker: Path) -> Iterator[DeploymentHandle]:
    settings = ClassifierSettings(device=DeviceSettings(cpu_threads=1), max_batch=4)
    deployment = serve.deployment(NSFWClassifier).options(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=64)
    application = deployment.bind(
        settings, classifier=str(tiny_vit), safety_checker=str(tiny_safety_checker), threshold=THRESHOLD
    )
    yield serve.run(application, name=APP, route_prefix=None)
    serve.delete(APP)


def pictures(count: int) -> list[Pixels]:
    random = np.random.default_rng(3)
    return [random.integers(0, 256, (48 + 8 * (i % 3), 64, 3), np.uint8) for i in range(count)]


def test_each_image_gets_its_own_score(handle: DeploymentHandle, tiny_vit: Path, tiny_safety_checker: Path) -> None:
    images = pictures(10)
    scores = [response.result() for response in [handle.classify.remote(image) for image in images]]
    alone = ImageClassifier(
        str(tiny_vit),
        safety_checker=str(tiny_safety_checker),
        threshold=THRESHOLD,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    for score, image in zip(scores, images, strict=True):
        (expected,) = alone([image])
        assert score.score == pytest.approx(expected.score, abs=1e-5)
        assert score.flagged_by == expected.flagged_by
    assert len({score.score for score in scores}) > 1


def test_an_image_that_cannot_be_judged_fails_alone(handle: DeploymentHandle) -> None:
    good = [handle.classify.remote(image) for image in pictures(3)]
    bad = handle.classify.remote(np.zeros((0, 0, 3), np.uint8))
    with pytest.raises(RayTaskError):
        bad.result()
    assert all(0 <= response.result().score <= 1 for response in good)


def test_describes_itself(handle: DeploymentHandle) -> None:
    description = handle.describe.remote().result()
    assert (description.name, description.device, description.claim) == ("NSFWClassifier", "cpu", 0)
    assert len(description.checkpoints) == 2
