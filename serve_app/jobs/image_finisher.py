"""The end of every image of a job: judged by the classifier, written into the image store with what it says of itself.

Knows nothing of how it came to be.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deployments.engine.types import Pixels
from serve_app.config.settings import ImagesSettings
from serve_app.image_store.store import ImageName, ImageStore
from serve_app.images.encode import Manifest, UpscaleManifest, encode_image
from serve_app.images.moderation import SafetyOutcome, apply_safety
from serve_app.planning.operations import Operation
from serve_app.stages.client import StageCalls


@dataclass(frozen=True, slots=True)
class FinishedImage:
    """record: its part of the job's result, as JSON. shown: there is a file. classify_s, store_s: wall-clock seconds
    here.
    """

    record: dict[str, Any]
    shown: bool
    classify_s: float
    store_s: float


@dataclass(frozen=True, slots=True)
class ImageFinisher:
    """How the images of one attempt at a job end. job_id, fence: name the files."""

    calls: StageCalls
    images: ImageStore
    settings: ImagesSettings
    operation: Operation
    job_id: str
    fence: int

    async def finish(
        self,
        index: int,
        pixels: Pixels,
        manifest_of: Callable[[SafetyOutcome | None], Manifest | UpscaleManifest],
        *,
        reproducibility: str,
    ) -> FinishedImage:
        """Image `index`, uint8 (height, width, 3). Raises DarkroomError."""
        operation = self.operation
        classifying = time.monotonic()
        outcome: SafetyOutcome | None = None
        if operation.safety != "off":
            score = await self.calls.classify(pixels)
            outcome = await asyncio.to_thread(apply_safety, pixels, score, operation.safety)
        storing = time.monotonic()
        shown = pixels if outcome is None else outcome.pixels
        manifest = manifest_of(outcome)
        name: ImageName | None = None
        if shown is not None:
            quality = self.settings.quality(operation.output_format)
            data = await asyncio.to_thread(encode_image, shown, operation.output_format, manifest, quality)
            name = ImageName(self.job_id, self.fence, index, operation.output_format)
            await self.images.write(name, data)
        return FinishedImage(
            record={
                "index": index,
                "name": None if name is None else str(name),
                "seed": manifest.seed if isinstance(manifest, Manifest) else None,
                "width": pixels.shape[1],
                "height": pixels.shape[0],
                "format": operation.output_format,
                "nsfw": {
                    "flagged": manifest.safety.flagged,
                    "score": manifest.safety.score,
                    "action": manifest.safety.action,
                    "flagged_by": list(manifest.safety.flagged_by),
                },
                "reproducibility": reproducibility,
                "manifest": manifest.model_dump(mode="json"),
            },
            shown=name is not None,
            classify_s=storing - classifying,
            store_s=time.monotonic() - storing,
        )
