"""Draws one image of a job: through its denoising stages, over its details, then through the finisher.

An image goes on from its snapshot. It can be cancelled anywhere: its lanes leave at their next step.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deployments.engine.errors import EngineStopped
from deployments.engine.types import (
    DenoiseRequest,
    DenoiseResult,
    Pixels,
    Progress,
    UpscaleRequest,
    UpscaleResult,
)
from serve_app.estimation.cost_model import CostModel
from serve_app.images.details import DrawnDetail
from serve_app.images.inpainting import Frame, covering, middle_of, second_pass_image
from serve_app.images.steering import NO_PICTURES, SteeringPictures
from serve_app.jobs.detail_pass import DetailPass
from serve_app.jobs.image_finisher import DrawnImage, ImageFinisher
from serve_app.jobs.job_snapshots import JobSnapshots
from serve_app.jobs.manifest import manifest_of
from serve_app.observability.traces import JobTraces
from serve_app.planning.plan import PRIORITIES, Plan
from serve_app.schemas.generation_request import SEEDS
from serve_app.stages.client import Encoding, StageCalls


@dataclass(frozen=True, slots=True)
class LaneProgress:
    """One image's progress in one of its stages, both by index; the other fields as in the engine's Progress."""

    image: int
    stage: int
    step: int
    steps: int
    preview: Pixels | None
    device_s: float = 0.0
    step_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Lane:
    """What a lane begins with, as Plan.lane takes it, with the encoding of its prompt."""

    encoding: Encoding
    seed: int
    before: DenoiseResult | None = None
    image: Pixels | None = None
    mask: Pixels | None = None
    steering: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GenerationExecutor:
    """Draws the images of one attempt at a job.

    Attributes:
        finisher: judges and stores the drawn images.
        encoding: of the prompt.
        frame: the picture that the images begin with; None for text to image.
        snapshots: of the images; read and written.
        state_every: UNet evaluations between snapshots.
        tenant: that the device time is charged to.
        deadline: monotonic seconds.
        costs: what lanes are expected to take.
        progress: called at each step.
        traces: of the router's jobs.
        hires_encoding: of the prompt for a second pass; None without one.
        detail_encodings: of each detail's.
        steering: pictures of ControlNets, references and regions.
    """

    calls: StageCalls
    finisher: ImageFinisher
    plan: Plan
    encoding: Encoding
    frame: Frame | None
    snapshots: JobSnapshots
    state_every: int
    tenant: str
    deadline: float
    costs: CostModel
    progress: Callable[[LaneProgress], None]
    traces: JobTraces
    hires_encoding: Encoding | None = None
    detail_encodings: Sequence[Encoding] = ()
    steering: SteeringPictures = NO_PICTURES

    async def draw(self, index: int) -> DrawnImage:
        """Draw the image of the plan's seed `index`. Raises DarkroomError."""
        with self.traces.span("image", **{"darkroom.image.index": index}):
            return await self._draw(index)

    async def _draw(self, index: int) -> DrawnImage:
        generation = self.plan.operation
        results: list[DenoiseResult] = []
        enlarged: UpscaleResult | None = None
        last = len(self.plan.stages) - 1
        for number in range(len(self.plan.whole_stages)):
            result = self.snapshots.result(index, number)
            if result is None:
                before = results[-1] if results else None
                enlarged = await self._enlarged(number, before)
                result = await self._traced(index, number, await self._lane_of(index, number, before, enlarged))
                if number < last:
                    self.snapshots.put(index, number, result)
            results.append(result)
        pixels = results[-1].image
        if pixels is None:
            raise EngineStopped("the last stage answered without an image")
        if self.frame is not None:
            pixels = await asyncio.to_thread(self.frame.composed, pixels)
        pixels, details = await self._with_details(index, pixels)

        drawn = await self.finisher.finish(
            index, pixels, lambda outcome: manifest_of(generation, results, outcome, enlarged, details)
        )
        ended = dict(enumerate(results)) | {part.stage: part.result for detail in details for part in detail.parts}
        between_s = enlarged.device_s if enlarged else 0.0
        return replace(
            drawn,
            denoise_s=sum(result.timings.denoise_s for result in ended.values()),
            decoded={number: result.timings.decode_s for number, result in ended.items() if result.timings.decode_s},
            device_s=sum(result.timings.device_s for result in ended.values()) + between_s,
            upscale_s=enlarged.upscale_s if enlarged else 0.0,
            between_s=between_s,
        )

    async def _enlarged(self, number: int, before: DenoiseResult | None) -> UpscaleResult | None:
        """The first pass enlarged by a model; None if the stage doesn't begin with that."""
        hires = self.plan.stages[number].hires
        if hires is None or hires.upscaler_model is None or before is None or before.image is None:
            return None
        priority = PRIORITIES[self.plan.operation.priority]
        height, width = before.image.shape[:2]
        size = covering((width, height), (hires.width, hires.height))
        request = UpscaleRequest(hires.upscaler_model, before.image, *size, priority)
        with self.traces.span("upscale"):
            return await self.calls.upscale(request, lambda _: None)

    async def _with_details(self, index: int, picture: Pixels) -> tuple[Pixels, list[DrawnDetail]]:
        """The picture, drawn over where its details are; and what was found and drawn."""
        if not self.plan.operation.details:
            return picture, []
        seed = self.plan.operation.seeds[index]

        def plan_steps(number: int, steps: int) -> None:
            if self.snapshots.state(index, number) is None and self.snapshots.result(index, number) is None:
                self.progress(LaneProgress(index, number, 0, steps, None))

        async def draw(number: int, image: Pixels, mask: Pixels) -> DenoiseResult:
            result = self.snapshots.result(index, number)
            if result is None:
                stage = self.plan.stages[number]
                encoding = self.detail_encodings[stage.detail or 0]
                lane = _Lane(encoding, (seed + stage.part) % SEEDS, image=image, mask=mask)
                result = await self._traced(index, number, lane)
                self.snapshots.put(index, number, result)
            return result

        details = DetailPass(index, self.calls, self.plan, self.snapshots, self.traces, plan_steps, draw)
        return await details.drawn(picture)

    async def _traced(self, index: int, number: int, lane: "_Lane") -> DenoiseResult:
        """As `_denoise`, with its spans."""
        stage = self.plan.stages[number]
        attributes: dict[str, str | int] = {
            "darkroom.stage": stage.stage,
            "darkroom.checkpoint": stage.checkpoint,
            "darkroom.sampler": stage.sampler,
            "darkroom.steps": stage.steps,
            "darkroom.width": stage.width,
            "darkroom.height": stage.height,
        }
        begin_ns = time.time_ns()
        with self.traces.span("denoise", **attributes) as span:
            result = await self._denoise(index, number, lane)
            timings = result.timings
            elapsed_s = (time.time_ns() - begin_ns) / 1e9
            waited_s = max(0.0, elapsed_s - timings.denoise_s - timings.decode_s)
            self.traces.past({"wait": waited_s, "step": timings.denoise_s, "decode": timings.decode_s}, begin_ns)
            span.set_attribute("darkroom.device_s", timings.device_s)
        if index == number == 0:
            self.traces.past({"encode": timings.encode_s}, self.encoding.requested_ns)
        return result

    async def _lane_of(
        self, index: int, number: int, before: DenoiseResult | None, enlarged: UpscaleResult | None
    ) -> "_Lane":
        """What a stage of the whole image begins with."""
        stage, generation, frame = self.plan.stages[number], self.plan.operation, self.frame
        if frame is not None:
            image: Pixels | None = frame.image
        elif enlarged is not None:
            image = middle_of(enlarged.image, (stage.width, stage.height))
        else:
            image = await asyncio.to_thread(second_pass_image, before, stage.hires)
        encoding = self.encoding if stage.hires is None or self.hires_encoding is None else self.hires_encoding
        steering: Mapping[str, Any] = {}
        if generation.steered:
            size = stage.width, stage.height
            steering = await asyncio.to_thread(self.steering.of_pass, generation, size, frame, refines=stage.refines)
        mask = None if frame is None else frame.mask
        return _Lane(encoding, generation.seeds[index], before=before, image=image, mask=mask, steering=steering)

    async def _denoise(self, index: int, number: int, lane: "_Lane") -> DenoiseResult:
        stage, generation = self.plan.stages[number], self.plan.operation
        accepted = self.deadline - generation.timeout_s

        def request(attempt: int) -> DenoiseRequest:
            return self.plan.lane(
                stage,
                lane_id=f"{self.finisher.job_id}-{self.finisher.fence}-{index}-{number}-{attempt}",
                seed=lane.seed,
                variation_seed=generation.variation_seeds[index],
                tenant=self.tenant,
                waited_s=max(0.0, time.monotonic() - accepted),
                timeout_s=max(0.001, self.deadline - time.monotonic()),
                before=lane.before,
                image=lane.image,
                mask=lane.mask,
                steering=lane.steering,
                state_every=self.state_every,
            )

        def progress(event: Progress) -> None:
            if event.state is not None:
                self.snapshots.put(index, number, event.state)
            self.progress(
                LaneProgress(index, number, event.step, event.steps, event.preview, event.device_s, event.step_s)
            )

        resume = self.snapshots.state(index, number)
        expected = self.costs.predict([stage])
        work_s = 0.0 if expected is None else expected[0].device_s
        return await self.calls.denoise(stage.stage, request, lane.encoding, progress, resume, work_s)
