"""Checks of a plan that only the stages can make, before it becomes a job: memory, schedules, lengths of texts.

The sizes that the stages have memory for are kept for a while, so that only the first request waits for them. While
they are unknown, the stage itself refuses.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from deployments.config import TextEncoderSettings
from deployments.engine.errors import InvalidRequest
from deployments.engine.memory.limits import LargestSizes
from deployments.engine.prompts.syntax import surely_fits
from deployments.replica import StageDescription
from serve_app.planning.plan import Plan
from serve_app.stages.client import StageCalls

_FRESH_S = 5.0


class Answer(Protocol):
    """A stage's state, as readiness.py has it."""

    @property
    def description(self) -> StageDescription | None: ...


class StageChecks:
    """Refuses plans by what the stages say."""

    def __init__(
        self,
        encoder: TextEncoderSettings,
        calls: StageCalls,
        describe_stages: Callable[[], Awaitable[Mapping[str, Answer]]],
    ) -> None:
        """`describe_stages` asks all stages, with a bounded wait."""
        self._encoder = encoder
        self._calls = calls
        self._describe_stages = describe_stages
        self._largest_sizes: dict[str, LargestSizes] = {}
        self._described_at: float | None = None
        self._description: asyncio.Task[None] | None = None

    async def check(self, plan: Plan) -> None:
        """Raise DoesNotFit or InvalidRequest if a stage would refuse the plan's images, each alone in a batch."""
        await self._check_sizes(plan)
        await self._check_schedule(plan)
        await self._check_texts(plan)

    async def _check_sizes(self, plan: Plan) -> None:
        if self._described_at is None:
            await self._describe()
        elif time.monotonic() - self._described_at > _FRESH_S and (
            self._description is None or self._description.done()
        ):
            self._description = asyncio.create_task(self._describe())
        for stage in plan.stages:
            sizes = self._largest_sizes.get(stage.checkpoint)
            if sizes is not None:
                sizes.check(plan.lane(stage))

    async def _describe(self) -> None:
        for answer in (await self._describe_stages()).values():
            if answer.description is not None:  # of those that sleep, what they said last is kept
                self._largest_sizes |= answer.description.largest_sizes
        self._described_at = time.monotonic()

    async def _check_schedule(self, plan: Plan) -> None:
        """Refuse a strength that begins after the refiner's switch, which only the sampler's schedule tells.

        A strength cuts the schedule by number of steps, a switch by noise level, and steps may lie unevenly (Karras).
        """
        generation, base = plan.operation, plan.stages[0]
        if generation.image is None or generation.switch_at is None:
            return
        try:
            await self._calls.check_schedule(base.stage, plan.lane(base))
        except InvalidRequest as error:
            raise InvalidRequest(
                f"refiner.switch_at is {generation.switch_at:g}: with strength {generation.image.strength:g} "
                f"{generation.model} gets no step of {generation.sampler} before it ({error.message})",
                "refiner.switch_at",
            ) from None

    async def _check_texts(self, plan: Plan) -> None:
        """Refuse texts with too many tokens, which only the text encoder can count."""
        encoder, generation = self._encoder, plan.operation
        short = all(surely_fits(prompt, encoder.max_chunks) for prompt in generation.prompts)
        if short and not encoder.embeddings and not generation.clip_skip:
            return
        for encoding in plan.encodings:
            await self._calls.check_texts(encoding)
