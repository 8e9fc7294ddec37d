"""Draws a generation in this process: the stages' own parts one after the other, without Ray, HTTP or a store.

One stage is in memory at a time, so that a machine which can't hold them all can still draw. What comes out is what the
service would answer: the same safety layers, the same file with the same manifest.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from deployments.engine.adapters.lora_file import LoraFiles
from deployments.engine.checkpoints.loader import load_text_encoders
from deployments.engine.conditioning.image_encoder import ImageEncoder, ImageEncoders
from deployments.engine.config import DeviceSettings
from deployments.engine.device_thread import DeviceThread
from deployments.engine.engine import Engine
from deployments.engine.errors import EngineStopped, InvalidRequest
from deployments.engine.prompts.encoder import PromptEncoder
from deployments.engine.prompts.schedule import PromptSchedule
from deployments.engine.prompts.textual_inversion import EmbeddingFolder
from deployments.engine.safety_classifier import ImageClassifier
from deployments.engine.types import (
    Conditioning,
    DenoiseResult,
    Pixels,
    Progress,
    ReferenceFeatures,
    ReferencePicture,
    TextEncodingRequest,
)
from serve_app.config.settings import ApplicationDevice, Settings
from serve_app.images.encode import encode_image
from serve_app.images.inpainting import Frame, second_pass_image
from serve_app.images.moderation import SafetyOutcome, apply_safety
from serve_app.images.steering import NO_PICTURES, SteeringPictures
from serve_app.jobs.manifest import manifest_of
from serve_app.planning.plan import Plan, plan_generation
from serve_app.schemas.manifest import Manifest
from serve_app.schemas.resolved import ResolvedGeneration

OfDevice = TypeVar("OfDevice", bound=DeviceSettings)

# what is being done; UNet evaluations done and planned, over all images and stages
Watch = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class LocalImage:
    """One image; `data` is its file's content, None if the safety layers withheld it."""

    manifest: Manifest
    data: bytes | None


async def draw(
    generation: ResolvedGeneration,
    settings: Settings,
    watch: Watch,
    frame: Frame | None = None,
    steering: SteeringPictures = NO_PICTURES,
) -> list[LocalImage]:
    """Draw the images of a generation, in the order of its seeds; a cancelled task ends at the next step.

    Args:
        generation: to draw.
        settings: of the service.
        watch: gets the progress.
        frame: that the images begin with; None for text to image.
        steering: pictures of its ControlNets, references and regions.

    Raises:
        DarkroomError: as the stages.
    """
    plan = plan_generation(generation, settings)
    steps = _Steps(plan, watch)
    steps.show("encoding the prompt")
    references = steering.to_encode(generation)
    conditioning = await asyncio.to_thread(_encode, replace(plan.encoding, references=references), settings)
    second = plan.hires_encoding
    of_second: Conditioning | None = None
    if second is not None:
        of_second = await asyncio.to_thread(_encode, replace(second, references=references), settings)
    results: list[list[DenoiseResult]] = [[] for _ in generation.seeds]
    for number in range(len(plan.stages)):
        text = of_second if of_second is not None and plan.stages[number].hires else conditioning
        finished = await _denoise(plan, number, settings, text, frame, steering, results, steps)
        for of_image, result in zip(results, finished, strict=True):
            of_image.append(result)
    pixels = [_pixels(of_image[-1]) for of_image in results]
    if frame is not None:
        pixels = await asyncio.to_thread(lambda: [frame.composed(drawn) for drawn in pixels])
    outcomes: Sequence[SafetyOutcome | None] = [None for _ in pixels]
    if generation.safety != "off":
        steps.show("checking")
        outcomes = await asyncio.to_thread(_judge, pixels, generation, settings)
    return [
        await asyncio.to_thread(_file, generation, settings, *of_image)
        for of_image in zip(results, pixels, outcomes, strict=True)
    ]


class _Steps:
    """How far all lanes are; a stage that hasn't begun counts by its share of the schedule."""

    def __init__(self, plan: Plan, watch: Watch) -> None:
        shares = [max(1, round(stage.steps * stage.share)) for stage in plan.stages]
        self._of_lanes = {
            (image, stage): (0, share) for image in range(plan.operation.n) for stage, share in enumerate(shares)
        }
        self._watch = watch

    def show(self, what: str) -> None:
        done, planned = (sum(numbers) for numbers in zip(*self._of_lanes.values(), strict=True))
        self._watch(what, done, planned)

    def moved(self, image: int, stage: int, progress: Progress) -> None:
        self._of_lanes[image, stage] = (progress.step, progress.steps)
        self.show("drawing")


async def _denoise(
    plan: Plan,
    number: int,
    settings: Settings,
    conditioning: Conditioning,
    frame: Frame | None,
    steering: SteeringPictures,
    before: Sequence[Sequence[DenoiseResult]],
    steps: _Steps,
) -> list[DenoiseResult]:
    """Run one stage of all images, in an engine of its own; `before`: the results of each image's earlier stages."""
    stage = plan.stages[number]
    own = getattr(settings.stages, stage.stage).engine.model_copy(update={"compile": None})  # not for one picture
    spec = settings.models[stage.checkpoint].checkpoint()
    engine = Engine(
        _on_device(own, settings.device),
        {stage.checkpoint: spec},
        loras=settings.loras,
        conditioning=settings.conditioning,
    )
    generation, of_pass = plan.operation, dict[str, Any]()
    if generation.steered:
        size = stage.width, stage.height
        of_pass = await asyncio.to_thread(steering.of_pass, generation, size, frame, refines=stage.refines)
    await asyncio.to_thread(engine.start)

    async def lane(image: int) -> DenoiseResult:
        result = before[image][-1] if before[image] else None
        first_image = await asyncio.to_thread(second_pass_image, result, stage.hires)
        request = plan.lane(
            stage,
            lane_id=f"{number}-{image}",
            seed=generation.seeds[image],
            variation_seed=generation.variation_seeds[image],
            before=result,
            image=first_image if frame is None else frame.image,
            mask=None if frame is None else frame.mask,
            steering=of_pass,
        )
        async for event in engine.stream(request, conditioning):
            if isinstance(event, DenoiseResult):
                return event
            steps.moved(image, number, event)
        raise EngineStopped("the engine ended a lane without a result")

    try:
        steps.show(f"loading {stage.checkpoint}")
        await asyncio.wrap_future(engine.preload(stage.checkpoint))
        return await asyncio.gather(*map(lane, range(plan.operation.n)))
    finally:
        await asyncio.to_thread(engine.stop)


def _encode(asked: TextEncodingRequest, settings: Settings) -> Conditioning:
    own = settings.stages.text_encoder
    spec = settings.models[asked.checkpoint].checkpoint()
    with closing(DeviceThread(_on_device(own.device, settings.device))) as thread:
        encoders = thread.submit(load_text_encoders, spec, thread.device, thread.dtype).result()
        inversions = EmbeddingFolder(own.embeddings).entries()
        loras = LoraFiles(settings.loras)
        encoder = PromptEncoder(
            {asked.checkpoint: encoders},
            thread.batch(own.max_batch),
            max_chunks=own.max_chunks,
            inversions=inversions,
            loras=loras,
        )
        schedule = PromptSchedule.of(asked, loras.of_text(asked.loras), loras.of_regions(asked))
        embeddings = {}
        for text in schedule.texts:
            try:
                (embeddings[text],) = thread.submit(encoder.encode, [text]).result()
            except InvalidRequest as error:
                raise schedule.in_field(error, text) from None
        seen = _see(asked.references, settings, thread)
    return replace(schedule.conditioning(embeddings), references=tuple(seen))


def _see(pictures: Sequence[ReferencePicture], settings: Settings, thread: DeviceThread) -> list[ReferenceFeatures]:
    """The features of reference pictures; image encoders are loaded only where there are some."""
    sources = settings.ip_adapters.encoders if pictures else ()
    encoders = [thread.submit(ImageEncoder, source, thread.device, thread.dtype).result() for source in sources]
    return thread.submit(ImageEncoders(encoders, thread.batch(settings.ip_adapters.max_batch)).see, pictures).result()


def _judge(pixels: Sequence[Pixels], generation: ResolvedGeneration, settings: Settings) -> list[SafetyOutcome | None]:
    safety, mode = settings.safety, generation.safety
    with closing(DeviceThread(_on_device(settings.stages.nsfw_classifier.device, settings.device))) as thread:
        classifier = thread.submit(
            ImageClassifier,
            safety.classifier,
            safety_checker=safety.safety_checker,
            threshold=safety.threshold,
            device=thread.device,
            dtype=thread.dtype,
        ).result()
        scores = thread.submit(classifier, pixels).result()
    return [None if mode == "off" else apply_safety(*scored, mode) for scored in zip(pixels, scores, strict=True)]


def _file(
    generation: ResolvedGeneration,
    settings: Settings,
    results: Sequence[DenoiseResult],
    pixels: Pixels,
    outcome: SafetyOutcome | None,
) -> LocalImage:
    manifest = manifest_of(generation, results, outcome)
    shown = pixels if outcome is None else outcome.pixels
    quality = settings.images.quality(generation.output_format)
    data = None if shown is None else encode_image(shown, generation.output_format, manifest, quality)
    return LocalImage(manifest, data)


def _pixels(result: DenoiseResult) -> Pixels:
    if result.image is None:
        raise EngineStopped("the last stage answered without an image")
    return result.image


def _on_device(own: OfDevice, wanted: ApplicationDevice) -> OfDevice:
    """A stage's settings on the device that the settings name for all, as the service does it."""
    if wanted == "auto" or own.device == "cpu":
        return own
    if wanted == "cpu-with-claims":
        return own.model_copy(update={"device": "cpu"}).for_cpu()
    return own.model_copy(update={"device": wanted})
