"""What a job costs: device seconds by stage, predicted from what the stages have charged of late.

Work is counted in UNet rows x pixels x steps of the schedule. What a unit of it costs is a weighted mean for each
stage, sampler and number of pixels, of the lanes' own accounts: a lane's share of each step that it took part in. So a
unit is cheap while batches are full, and a sampler that evaluates twice a step costs twice as much. A kind of work that
was never seen is taken for the most similar one of its stage. What one process has learned another can begin with.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

_COST_SHARE = 0.05  # how much of a cost the latest observation makes up
_KINDS = 256  # kinds of work that are remembered, the latest ones


class Stage(Protocol):
    """A stage of a plan, as far as it costs something: as DenoiseStage and UpscaleStage have it.

    sampler: what its steps' cost depends on besides: of an enlarged picture the model.
    """

    @property
    def stage(self) -> str: ...
    @property
    def checkpoint(self) -> str: ...
    @property
    def output(self) -> Literal["image", "latents"]: ...
    @property
    def share(self) -> float: ...
    @property
    def rows(self) -> float: ...
    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def sampler(self) -> str: ...


class Mean:
    """Exponentially weighted mean; 0 without any value. `share` of it is the latest value, more while there are few."""

    def __init__(self, share: float, value: float | None = None) -> None:
        """value: of a mean that has seen many before."""
        self.value = value or 0.0
        self._share = share
        self._weight = 1.0 if value is None else share

    def add(self, value: float) -> None:
        """One more value."""
        self.value += self._weight * (value - self.value)
        self._weight = max(self._share, self._weight / (1 + self._weight))


@dataclass(frozen=True, slots=True)
class StageWork:
    """One image in one stage.

    device_s: seconds of the device that it is charged. lane_s: seconds that its steps and its decoding take one after
    the other, in batches as they are now: no image is done faster.
    """

    stage: str
    device_s: float
    lane_s: float


class _Kind(NamedTuple):
    """A kind of work. sampler, pixels: "" and 0 for decoding."""

    stage: str
    sampler: str
    pixels: int


@dataclass(frozen=True, slots=True)
class LearnedCost:
    """What a unit of a kind of work costs, as it is handed on: of rows x pixels x steps, or of pixels decoded.

    sampler, pixels: "" and 0 for decoding. device_s, lane_s: what it is charged, how long it takes.
    """

    stage: str
    sampler: str
    pixels: int
    device_s: float
    lane_s: float

    @property
    def usable(self) -> bool:
        """A prediction can be made of it: it is read from a database that other software may have written to."""
        known = self.pixels > 0 if self.sampler else self.pixels == 0
        return known and all(math.isfinite(seconds) and seconds > 0 for seconds in (self.device_s, self.lane_s))


class _Cost(NamedTuple):
    """Means over the observations of a kind, a unit of work: as LearnedCost has them."""

    device_s: Mean
    lane_s: Mean


class CostModel:
    """Learned costs, and predictions from them."""

    def __init__(self) -> None:
        self._costs: OrderedDict[_Kind, _Cost] = OrderedDict()
        self._unsaved: set[_Kind] = set()

    def stepped(self, stage: Stage, share: float, *, device_s: float, step_s: float) -> None:
        """A lane has done `share` (0..1) of the stage's steps, for so much of the device, in so much time."""
        work = share * _work(stage)
        self._observe(_kind(stage), device_s / work, step_s / work)

    def decoded(self, stage: Stage, seconds: float) -> None:
        """An image was decoded in so much of the device's time."""
        pixel_s = seconds / _pixels(stage)
        self._observe(_Kind(stage.stage, "", 0), pixel_s, pixel_s)

    def _observe(self, kind: _Kind, device_s: float, lane_s: float) -> None:
        cost = self._costs.setdefault(kind, _Cost(Mean(_COST_SHARE), Mean(_COST_SHARE)))
        cost.device_s.add(device_s)
        cost.lane_s.add(lane_s)
        self._unsaved.add(kind)
        self._costs.move_to_end(kind)
        if len(self._costs) > _KINDS:
            forgotten, _ = self._costs.popitem(last=False)
            self._unsaved.discard(forgotten)

    def predict(self, stages: Sequence[Stage]) -> tuple[StageWork, ...] | None:
        """What one image costs in each of its stages; None while one of them has never been seen at work."""
        predicted = []
        for stage in stages:
            cost = self._most_similar(_kind(stage))
            if cost is None:
                return None
            work = _work(stage)
            decoding = self._costs.get(_Kind(stage.stage, "", 0)) if stage.output == "image" else None
            decode_s = 0.0 if decoding is None else _pixels(stage) * decoding.device_s.value
            predicted.append(
                StageWork(stage.stage, work * cost.device_s.value + decode_s, work * cost.lane_s.value + decode_s)
            )
        return tuple(predicted)

    def _most_similar(self, kind: _Kind) -> _Cost | None:
        """The kind's own cost, or that of its stage's kind with the nearest number of pixels, and then its sampler."""
        if kind in self._costs:
            return self._costs[kind]

        def unlikeness(other: _Kind) -> tuple[float, bool]:
            return abs(math.log(other.pixels / kind.pixels)), other.sampler != kind.sampler

        known = [other for other in self._costs if other.stage == kind.stage and other.sampler]
        return self._costs[min(known, key=unlikeness)] if known else None

    def unsaved(self) -> tuple[LearnedCost, ...]:
        """What was learned since this was last called, to be kept for others."""
        changed, self._unsaved = self._unsaved, set()
        return tuple(
            LearnedCost(*kind, cost.device_s.value, cost.lane_s.value)
            for kind, cost in self._costs.items()
            if kind in changed
        )

    def begin_with(self, learned: Iterable[LearnedCost]) -> None:
        """Take over what others have learned, the latest last, before anything is learned here."""
        for cost in [cost for cost in learned if cost.usable][-_KINDS:]:
            kind = _Kind(cost.stage, cost.sampler, cost.pixels)
            self._costs[kind] = _Cost(Mean(_COST_SHARE, cost.device_s), Mean(_COST_SHARE, cost.lane_s))


def _kind(stage: Stage) -> _Kind:
    return _Kind(stage.stage, stage.sampler, _pixels(stage))


def _work(stage: Stage) -> float:
    """Of all steps of one image: rows x pixels x steps of the schedule."""
    return stage.rows * _pixels(stage) * stage.steps * stage.share


def _pixels(stage: Stage) -> int:
    return stage.width * stage.height
