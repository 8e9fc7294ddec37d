"""Which requests no stage has the memory for: refused at the door, before they become jobs.

The stages say what they have room for; what they said last is good for a while, so that no request waits for the
question but the first. Where nobody has answered yet the stage itself refuses. Knows no HTTP, handles or stores.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from deployments.engine.memory.limits import LargestSizes
from deployments.replica import StageDescription
from serve_app.planning.plan import Plan

_FRESH_S = 5.0


class Answer(Protocol):
    """What is known of a stage; readiness.py finds it out."""

    @property
    def description(self) -> StageDescription | None: ...


class SizeLimits:
    """What the stages have room for, by checkpoint."""

    def __init__(self, stages: Callable[[], Awaitable[Mapping[str, Answer]]]) -> None:
        """stages: asks them all, with a bounded wait."""
        self._stages = stages
        self._known: dict[str, LargestSizes] = {}
        self._asked_at: float | None = None
        self._asking: asyncio.Task[None] | None = None

    async def check(self, made: Plan) -> None:
        """Raise DoesNotFit if one of the plan's stages can't hold its images, each alone in a batch."""
        if self._asked_at is None:
            await self._ask()
        elif time.monotonic() - self._asked_at > _FRESH_S and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._ask())
        asked = made.generation
        for stage in made.stages:
            sizes = self._known.get(stage.checkpoint)
            if sizes is not None:
                lane = made.denoise(stage, lane_id="", seed=asked.seed, timeout_s=asked.timeout_s, given=None)
                sizes.check(lane)

    async def _ask(self) -> None:
        for answer in (await self._stages()).values():
            if answer.description is not None:  # of those that sleep, what they said last is kept
                self._known |= answer.description.largest_sizes
        self._asked_at = time.monotonic()
