"""Finishes every image of a job: the classifier judges it, and it is stored with its manifest, signed or not."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deployments.engine.types import Pixels
from serve_app.config.settings import ImagesSettings
from serve_app.image_store.store import ImageName, ImageStore
from serve_app.images.encode import encode_image
from serve_app.images.moderation import SafetyOutcome, apply_safety
from serve_app.observability.traces import JobTraces
from serve_app.provenance.content import definition_of
from serve_app.provenance.signer import ImageSigner
from serve_app.provenance.watermark import ImageWatermark
from serve_app.schemas.manifest import Manifest, UpscaleManifest
from serve_app.schemas.resolved import Operation
from serve_app.stages.client import StageCalls


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """A finished image.

    Attributes:
        record: its part of the job's result, as JSON.
        shown: whether there is a file.
        classify_s, store_s, upscale_s: wall-clock seconds.
        denoise_s, device_s: seconds as the stages measured them.
        decoded: likewise of decoding, for each stage that decoded, by its index in the plan.
        between_s: the part of device_s that an upscaler took between two passes, which no lane's progress counts.
    """

    record: dict[str, Any]
    shown: bool
    classify_s: float
    store_s: float
    denoise_s: float = 0.0
    decoded: Mapping[int, float] = field(default_factory=dict)
    device_s: float = 0.0
    upscale_s: float = 0.0
    between_s: float = 0.0

    @property
    def decode_s(self) -> float:
        """Seconds of decoding in all stages."""
        return sum(self.decoded.values())


@dataclass(frozen=True, slots=True)
class Signing:
    """What signs the images of a job, and the ingredients of their credentials."""

    signer: ImageSigner
    ingredients: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ImageFinisher:
    """Finishes the images of one attempt at a job; `job_id` and `fence` are in the files' names."""

    calls: StageCalls
    images: ImageStore
    traces: JobTraces
    settings: ImagesSettings
    watermark: ImageWatermark | None
    signing: Signing | None
    operation: Operation
    job_id: str
    fence: int

    async def finish(
        self, index: int, pixels: Pixels, manifest_of: Callable[[SafetyOutcome | None], Manifest | UpscaleManifest]
    ) -> DrawnImage:
        """Finish image `index`, (height, width, 3), uint8. Raises DarkroomError."""
        operation = self.operation
        classifying = time.monotonic()
        outcome: SafetyOutcome | None = None
        if operation.safety != "off":
            with self.traces.span("classify"):
                score = await self.calls.classify(pixels)
                outcome = await asyncio.to_thread(apply_safety, pixels, score, operation.safety)
        storing = time.monotonic()
        shown = pixels if outcome is None else outcome.pixels
        manifest = manifest_of(outcome)
        name: ImageName | None = None
        signed = False
        if shown is not None:
            name = ImageName(self.job_id, self.fence, index, operation.output_format)
            with self.traces.span("store", **{"darkroom.image.format": operation.output_format}):
                data = await asyncio.to_thread(self._file, shown, manifest)
                if self.signing is not None:
                    data, signed = await self._signed(self.signing, data, name, manifest)
                await self.images.write(name, data)
        seed, reproducibility = None, "best-effort"
        if isinstance(manifest, Manifest):
            seed, reproducibility = manifest.seed, manifest.reproducibility
        return DrawnImage(
            record={
                "index": index,
                "name": None if name is None else str(name),
                "seed": seed,
                "width": pixels.shape[1],
                "height": pixels.shape[0],
                "format": operation.output_format,
                "nsfw": manifest.safety.model_dump(mode="json", exclude={"mode"}),
                "reproducibility": reproducibility,
                "signed": signed,
                "manifest": manifest.model_dump(mode="json"),
            },
            shown=name is not None,
            classify_s=storing - classifying,
            store_s=time.monotonic() - storing,
        )

    def _file(self, pixels: Pixels, manifest: Manifest | UpscaleManifest) -> bytes:
        """The image as a file, marked if the settings say so. It takes tens of milliseconds."""
        marked = pixels if self.watermark is None else self.watermark.mark(pixels, self.job_id)
        output_format = self.operation.output_format
        return encode_image(marked, output_format, manifest, self.settings.quality(output_format))

    async def _signed(
        self, signing: Signing, data: bytes, name: ImageName, manifest: Manifest | UpscaleManifest
    ) -> tuple[bytes, bool]:
        """A file with its credentials, as ImageSigner.signed returns it. Raises SignatureFailed."""
        definition = definition_of(
            manifest,
            job_id=self.job_id,
            content_type=name.content_type,
            ingredients=len(signing.ingredients),
            prompt=signing.signer.settings.prompt,
        )
        with self.traces.span("sign"):
            return await signing.signer.signed(data, name.content_type, definition, signing.ingredients)
