"""Counters of what an engine has done so far."""

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(slots=True, kw_only=True)
class EngineCounters:
    """Counters that only grow, written by the engine's thread alone; seconds are that thread's.

    Attributes:
        steps_total: UNet steps, each of one batch of lanes.
        lane_steps_total: steps summed over the lanes that took part.
        rows_total: UNet rows without padding.
        padded_rows_total: UNet rows that padded a batch to its bucket.
        loads_total: checkpoints brought to the device.
        swaps_total: loads into the modules of another checkpoint.
        resumed_steps_total: steps that lanes saved by going on from a snapshot.
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
        """Count a step of `lanes` lanes with `rows` UNet rows, padded to `bucket`."""
        self.steps_total += 1
        self.lane_steps_total += lanes
        self.rows_total += rows
        self.padded_rows_total += bucket - rows
        self.step_seconds_total += seconds

    def load(self, seconds: float, *, in_place: bool) -> None:
        """Count a checkpoint that was brought to the device; `in_place` if into another one's modules."""
        self.loads_total += 1
        self.swaps_total += in_place
        self.load_seconds_total += seconds

    @property
    def totals(self) -> dict[str, Any]:
        """The counters by name, copied."""
        return {each.name: getattr(self, each.name) for each in fields(self)} | {"failures": Counter(self.failures)}


@dataclass(slots=True, kw_only=True)
class EngineStats(EngineCounters):
    """The counters at one moment, and what the engine holds then.

    Attributes:
        resident: checkpoints on the device, least recently used first.
        compiled: compiled UNet forwards, by rows and pixels.
        compiling: number of UNet forwards being compiled.
        compile_failures: number of UNet forwards that failed to compile, or whose output differed from the UNet's.
        compiled_steps_total: steps taken by compiled forwards.
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
