"""Tells the autoscaled stages, once a second, how much work this router has for them (deployments/demand.py)."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.demand import Demand
from serve_app.observability.logs import get_logger

log = get_logger(__name__)

_PERIOD_S = 1.0


class DemandReporter:
    """A loop for each autoscaled stage; it ends only by a bug, which the health check looks for.

    Args:
        stages: Handles of the autoscaled stages, by their keys in the settings' `stages`.
        demand_for: This router's work for a stage.
    """

    def __init__(self, stages: Mapping[str, DeploymentHandle[Any]], demand_for: Callable[[str], Demand]) -> None:
        self._stages = stages
        self._demand_for = demand_for
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to report."""
        self._tasks = [asyncio.create_task(self._report(stage, handle)) for stage, handle in self._stages.items()]

    async def stop(self) -> None:
        """End; the stages forget this router's work by themselves."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def check(self) -> None:
        """Raise what ended a loop, if one has ended."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    async def _report(self, stage: str, handle: DeploymentHandle[Any]) -> None:
        """One call at a time: where no replica runs it waits in Serve's queue, and wakes the stage by that."""
        reported = False
        while True:
            demand = self._demand_for(stage)
            if demand.lanes or reported:
                try:
                    await handle.report_demand.remote(demand)
                    reported = demand.lanes > 0
                except (RayError, RayServeException) as error:
                    log.info("a stage wasn't told of its demand", stage=stage, cause=type(error).__name__)
            await asyncio.sleep(_PERIOD_S)
