"""What an engine has done so far: plain counters that others read."""

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(slots=True, kw_only=True)
class EngineCounters:
    """What only ever grows; written by the device thread alone. Seconds are that thread's.

    Attributes:
        steps_total: UNet steps, each of one batch of lanes.
        lane_steps_total: steps summed over the lanes that took part.
        rows_total: UNet rows that carried work.
        padded_rows_total: UNet rows that only filled a batch up to its bucket.
        loads_total: checkpoints brought to the device.
        swaps_total: those of them that came into another one's models.
        resumed_steps_total: steps that lanes which went on from a state didn't take again.
        failures: lanes that failed, by error code.
    """

    steps_total: int = 0
    lane_steps_total: int = 0
    rows_total: int = 0
    padded_rows_total: int = 0
    step_seconds_total: float = 0.0
    queue_seconds_total: float = 0.0
    decode_seconds_total: float = 0.0
    images_total: int = 0
    finished_total: int = 0
    loads_total: int = 0
    swaps_total: int = 0
    load_seconds_total: float = 0.0
    resumed_steps_total: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def step(self, *, lanes: int, rows: int, bucket: int, seconds: float) -> None:
        """A step of `lanes` lanes was taken: `rows` UNet rows that carried work, in a bucket of `bucket`."""
        self.steps_total += 1
        self.lane_steps_total += lanes
        self.rows_total += rows
        self.padded_rows_total += bucket - rows
        self.step_seconds_total += seconds

    def load(self, seconds: float, *, in_place: bool) -> None:
        """A checkpoint came to the device."""
        self.loads_total += 1
        self.swaps_total += in_place
        self.load_seconds_total += seconds

    @property
    def totals(self) -> dict[str, Any]:
        """By name, as they are now."""
        return {each.name: getattr(self, each.name) for each in fields(self)} | {"failures": Counter(self.failures)}


@dataclass(slots=True, kw_only=True)
class EngineStats(EngineCounters):
    """A snapshot of the counters, beside what the engine holds now.

    Attributes:
        resident: checkpoints on the device, least recently used first.
        compiled: UNet forwards that are, by rows and pixels.
        compiling: how many are about to be.
        compile_failures: how many couldn't be, or computed something else than the UNet.
        compiled_steps_total: steps that compiled forwards took.
    """

    lanes_active: int
    lanes_waiting: int
    resident: tuple[str, ...]
    compiled: tuple[str, ...]
    compiling: int
    compile_failures: int
    compiled_steps_total: int
    device: str
    dtype: str
