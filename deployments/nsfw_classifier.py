"""Scores finished images as safe or unsafe, by the layers that the settings name.

Scoring takes milliseconds, so images of many requests share batches. What happens to an unsafe image is the caller's
decision.
"""

import logging

import numpy as np
from ray import serve

from deployments.batched_stage import BatchedStage
from deployments.config import ClassifierSettings
from deployments.engine.types import Pixels, SafetyScore
from deployments.metrics import ClassifierMetrics
from deployments.replica import without_garbage_collection

logger = logging.getLogger("ray.serve")


class NSFWClassifier(BatchedStage):
    """An image classifier, diffusers' safety checker, or both.

    Args:
        settings: the stage's settings.
        classifier: source of the classifier (a folder, a hub id, "package:…"), or None.
        safety_checker: source of the safety checker, or None.
        threshold: score of the unsafe label from which an image is flagged, 0 to 1.
    """

    def __init__(
        self,
        settings: ClassifierSettings,
        *,
        classifier: str | None,
        safety_checker: str | None,
        threshold: float,
    ) -> None:
        with without_garbage_collection():
            from deployments.engine.safety_classifier import ImageClassifier

        super().__init__(settings.device)
        self._checkpoints = tuple(source for source in (classifier, safety_checker) if source is not None)
        logger.info("Loading the image classifier %s", " and ".join(self._checkpoints))
        self._classifier = self._thread.submit(
            ImageClassifier,
            classifier,
            safety_checker=safety_checker,
            threshold=threshold,
            device=self._thread.device,
            dtype=self._thread.dtype,
        ).result()
        # the first one takes longer than all others
        self._thread.submit(self._classifier, [np.zeros((256, 256, 3), np.uint8)]).result()
        self._metrics = ClassifierMetrics()
        self._classify_images.set_max_batch_size(self._thread.batch(settings.max_batch))
        self._classify_images.set_batch_wait_timeout_s(settings.batch_wait_s)

    async def classify(self, image: Pixels) -> SafetyScore:
        """The score of one image, uint8 (height, width, 3). Raises NumericalFailure if it isn't finite."""
        result: SafetyScore | Exception = await self._classify_images(image)
        if isinstance(result, Exception):
            raise result
        return result

    @serve.batch
    async def _classify_images(self, images: list[Pixels]) -> list[SafetyScore | Exception]:
        results = await self._run_batch(self._classifier, images)
        scores = [result for result in results if isinstance(result, SafetyScore)]
        self._metrics.batch(len(scores), sum(score.flagged for score in scores))
        return results
