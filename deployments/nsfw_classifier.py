"""Judges finished images: unsafe or not, by layers that the settings switch on.

Judging takes milliseconds, so images of many requests share batches (`@serve.batch`). What happens to an
unsafe image (blocked, blurred, flagged) is decided by who asks.
"""

import logging

from ray import serve

from deployments.batched_stage import BatchedStage
from deployments.config import ClassifierSettings
from deployments.engine.types import Pixels, SafetyScore
from deployments.metrics import ClassifierMetrics
from deployments.uncollected import uncollected

logger = logging.getLogger("ray.serve")


class NSFWClassifier(BatchedStage):
    """An image classifier and, where it is given, diffusers' safety checker as a further layer.

    classifier, safety_checker: their sources (a folder, a hub id, "package:…"), None leaves a layer out.
    threshold: score of the unsafe label from which an image is flagged.
    """

    def __init__(
        self,
        settings: ClassifierSettings,
        *,
        classifier: str | None,
        safety_checker: str | None,
        threshold: float,
    ) -> None:
        with uncollected():
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
        self._metrics = ClassifierMetrics()
        self._classify_images.set_max_batch_size(settings.max_batch)
        self._classify_images.set_batch_wait_timeout_s(settings.batch_wait_s)

    async def classify(self, image: Pixels) -> SafetyScore:
        """The score of one image: uint8 (height, width, 3). Raises NumericalFailure if it has none."""
        result: SafetyScore | Exception = await self._classify_images(image)
        if isinstance(result, Exception):
            raise result
        return result

    @serve.batch
    async def _classify_images(self, images: list[Pixels]) -> list[SafetyScore | Exception]:
        """One result an image. Failures are values here: a raised one would fail every image of the batch."""
        results = await self._classify_together(images)
        if isinstance(results, Exception) and len(images) > 1:
            logger.warning("A batch of %d images failed (%s); each is tried alone", len(images), results)
            alone = [await self._classify_together([image]) for image in images]
            return [result if isinstance(result, Exception) else result[0] for result in alone]
        return [results] if isinstance(results, Exception) else [*results]

    async def _classify_together(self, images: list[Pixels]) -> list[SafetyScore] | Exception:
        try:
            scores = await self._thread.run(self._classifier, images)
        except Exception as error:
            return error
        self._metrics.batch(len(images), sum(score.flagged for score in scores))
        return scores
