"""What an engine has done so far: plain counters that others read."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot. Seconds are device-thread seconds; rows are UNet rows that carried work, padding apart.

    loads_total: checkpoints brought to the device; swaps_total: those of them that came into another one's models.
    compiled: UNet
    forwards, by rows and pixels; compiling: how many are about to be; compile_failures: those that couldn't be, or
    didn't do as the UNet does. compiled_steps_total: steps that compiled forwards took.
    """

    lanes_active: int
    lanes_waiting: int
    steps_total: int
    lane_steps_total: int
    rows_total: int
    padded_rows_total: int
    step_seconds_total: float
    queue_seconds_total: float
    decode_seconds_total: float
    images_total: int
    finished_total: int
    failures: dict[str, int]
    resident: tuple[str, ...]
    loads_total: int
    swaps_total: int
    load_seconds_total: float
    resumed_steps_total: int
    compiled: tuple[str, ...]
    compiling: int
    compile_failures: int
    compiled_steps_total: int
    device: str
    dtype: str


@dataclass(slots=True)
class EngineCounters:
    """The counters behind EngineStats, under its names; written by the device thread alone."""

    steps: int = 0
    lane_steps: int = 0
    rows: int = 0
    padded_rows: int = 0
    step_seconds: float = 0.0
    queue_seconds: float = 0.0
    decode_seconds: float = 0.0
    images: int = 0
    finished: int = 0
    loads: int = 0
    swaps: int = 0
    load_seconds: float = 0.0
    resumed_steps: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def step(self, *, lanes: int, rows: int, bucket: int, seconds: float) -> None:
        """A step of `lanes` lanes was taken: `rows` UNet rows that carried work, in a bucket of `bucket`."""
        self.steps += 1
        self.lane_steps += lanes
        self.rows += rows
        self.padded_rows += bucket - rows
        self.step_seconds += seconds

    def load(self, seconds: float, *, in_place: bool) -> None:
        """A checkpoint came to the device."""
        self.loads += 1
        self.swaps += in_place
        self.load_seconds += seconds

    def snapshot(
        self,
        *,
        lanes_active: int,
        lanes_waiting: int,
        resident: tuple[str, ...],
        compiled: tuple[str, ...],
        compiling: int,
        compile_failures: int,
        compiled_steps: int,
        device: str,
        dtype: str,
    ) -> EngineStats:
        """The counters as they are now, beside what isn't counted."""
        return EngineStats(
            lanes_active=lanes_active,
            lanes_waiting=lanes_waiting,
            steps_total=self.steps,
            lane_steps_total=self.lane_steps,
            rows_total=self.rows,
            padded_rows_total=self.padded_rows,
            step_seconds_total=self.step_seconds,
            queue_seconds_total=self.queue_seconds,
            decode_seconds_total=self.decode_seconds,
            images_total=self.images,
            finished_total=self.finished,
            failures=dict(self.failures),
            resident=resident,
            loads_total=self.loads,
            swaps_total=self.swaps,
            load_seconds_total=self.load_seconds,
            resumed_steps_total=self.resumed_steps,
            compiled=compiled,
            compiling=compiling,
            compile_failures=compile_failures,
            compiled_steps_total=compiled_steps,
            device=device,
            dtype=dtype,
        )
