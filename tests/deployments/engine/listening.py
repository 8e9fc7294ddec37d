"""A small request, and a listener that lets a test wait for what a lane's sink gets."""

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

from deployments.engine.types import DenoiseRequest, DenoiseResult, Event


def ask(lane_id: str = "lane", **changes: Any) -> DenoiseRequest:
    base = DenoiseRequest(
        lane_id=lane_id,
        checkpoint="sd15",
        seed=7,
        steps=6,
        guidance_scale=5.0,
        width=64,
        height=64,
        sampler="euler",
    )
    return dataclasses.replace(base, **changes)


class Listener:
    """Collects a lane's events from the engine's thread and lets a test wait for conditions on them."""

    def __init__(self) -> None:
        self.items: list[Event | Exception] = []
        self._changed = threading.Condition()

    def __call__(self, item: Event | Exception) -> None:
        with self._changed:
            self.items.append(item)
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[list[Event | Exception]], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self.items), timeout=60), self.items

    @property
    def ended(self) -> bool:
        return bool(self.items) and isinstance(self.items[-1], DenoiseResult | Exception)

    def outcome(self) -> Event | Exception:
        self.wait_for(lambda items: self.ended)
        return self.items[-1]
