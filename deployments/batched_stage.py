"""What the stages whose work is single calls share: a device thread in a replica, its description, its health.

Their calls share batches (`@serve.batch`); denoising stages have an engine, whose lanes share steps (stage.py). torch
is imported when a replica starts and not with this module. Knows nothing of what the calls compute.
"""

from deployments.denoising_stage import StageDescription, describe_replica
from deployments.engine.config import DeviceSettings
from deployments.replica import claim_device, settings_for


class BatchedStage:
    """A stage with one thread that owns its device.

    A subclass says in `_checkpoints` what it has in memory, and gives all its torch work to `_thread`.
    """

    _checkpoints: tuple[str, ...] = ()

    def __init__(self, settings: DeviceSettings) -> None:
        """Claim and open the device. Raises DeviceUnavailable."""
        from deployments.engine.device_thread import DeviceThread

        self._claim = claim_device()
        self._thread = DeviceThread(settings_for(self._claim, settings))

    async def describe(self) -> StageDescription:
        """The replica's device, claim and checkpoints. Raises EngineStopped if it can't serve any more."""
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
        """Serve calls this when the replica has drained (and Python once more later)."""
        if hasattr(self, "_thread"):
            self._thread.close()
