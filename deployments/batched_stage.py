"""The base of the stages whose requests are single calls: a device thread in a replica, and batches of calls.

Calls share batches by `@serve.batch`. torch is imported when a replica starts and not with this module.
"""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from deployments.engine.config import DeviceSettings
from deployments.replica import StageDescription, claim_device, describe_replica, settings_for

logger = logging.getLogger("ray.serve")

Item = TypeVar("Item")
Result = TypeVar("Result")


class BatchedStage:
    """A stage with one thread that owns its device.

    A subclass names the checkpoints in memory in `_checkpoints`, and does all its torch work in `_thread`.
    """

    _checkpoints: tuple[str, ...] = ()

    def __init__(self, settings: DeviceSettings) -> None:
        """Claim and open the device. Raises DeviceUnavailable."""
        from deployments.engine.device_thread import DeviceThread

        self._claim = claim_device()
        self._thread = DeviceThread(settings_for(self._claim, settings))

    async def describe(self) -> StageDescription:
        """The replica's device, claim and checkpoints. Raises EngineStopped if it can no longer serve."""
        self._thread.check()
        return describe_replica(
            self._claim,
            device=str(self._thread.device),
            dtype=str(self._thread.dtype).removeprefix("torch."),
            checkpoints=self._checkpoints,
        )

    def check_health(self) -> None:
        """Serve's health check: raises EngineStopped if the device was lost."""
        self._thread.check()

    def __del__(self) -> None:
        """Called by Serve when the replica has drained, and later by Python."""
        if hasattr(self, "_thread"):
            self._thread.close()

    async def _run_batch(
        self, function: Callable[[list[Item]], Sequence[Result]], items: list[Item]
    ) -> list[Result | Exception]:
        """One result an item. The items of a batch that failed are run alone, so that only the bad ones fail.

        Failures are returned: an exception raised in a `@serve.batch` function would fail every call of the batch.
        """
        try:
            return [*await self._thread.run(function, items)]
        except Exception as error:
            if len(items) == 1:
                return [error]
            logger.warning("A batch of %d failed (%s); each is tried alone", len(items), error)
        return [(await self._run_batch(function, [item]))[0] for item in items]
