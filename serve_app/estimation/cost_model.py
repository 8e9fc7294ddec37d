"""What a job costs: device seconds by stage, predicted from what the stages have charged lately.

Work is counted in UNet rows x pixels x steps of the schedule. The cost of a unit is a weighted mean, for each stage,
sampler and number of pixels, of what lanes were charged: their share of each step that they took part in. So a unit is
cheap while batches are full, and a sampler that evaluates twice a step costs twice as much. A kind of work that was
never seen costs as much as the most similar one of its stage. A new process begins with the costs of others.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

_COST_SHARE = 0.05  # weight of the latest observation in a cost
_KINDS = 256  # kinds of work that are kept, the latest ones


class Stage(Protocol):
    """What a cost depends on: fields of DenoiseStage and UpscaleStage, whose `sampler` is its model."""

    @property
    def stage(self) -> str: ...
    @property
    def checkpoint(self) -> str: ...
    @property
    def output(self) -> Literal["image", "latents"]: ...
    @property
    def share(self) -> float: ...
    @property
    def expected(self) -> bool: ...
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
    """Exponentially weighted mean; 0 without any value."""

    def __init__(self, share: float, value: float | None = None) -> None:
        """`share` is the weight of the latest value, higher for the first ones; `value`: of an earlier mean."""
        self.value = value or 0.0
        self._share = share
        self._weight = 1.0 if value is None else share

    def add(self, value: float) -> None:
        """Add a value."""
        self.value += self._weight * (value - self.value)
        self._weight = max(self._share, self._weight / (1 + self._weight))


@dataclass(frozen=True, slots=True)
class StageWork:
    """One image in one stage.

    Attributes:
        device_s: device seconds that it is charged.
        lane_s: seconds of its steps and its decoding one after the other, in batches as they are now: no image is done
            faster.
    """

    stage: str
    device_s: float
    lane_s: float


class _Kind(NamedTuple):
    """A kind of work; sampler "" and pixels 0 for decoding."""

    stage: str
    sampler: str
    pixels: int


@dataclass(frozen=True, slots=True)
class LearnedCost:
    """The cost of a unit of a kind of work, as it is stored: for rows x pixels x steps, or for pixels decoded.

    Attributes:
        sampler, pixels: "" and 0 for decoding.
        device_s: device seconds charged for a unit.
        lane_s: seconds that a unit takes.
    """

    stage: str
    sampler: str
    pixels: int
    device_s: float
    lane_s: float

    @property
    def usable(self) -> bool:
        """Whether its numbers make sense: other software may have written to the database."""
        known = self.pixels > 0 if self.sampler else self.pixels == 0
        return known and all(math.isfinite(seconds) and seconds > 0 for seconds in (self.device_s, self.lane_s))


class _Cost(NamedTuple):
    """Means over the observations of a kind, as in LearnedCost."""

    device_s: Mean
    lane_s: Mean


class CostModel:
    """Learned costs, and predictions from them."""

    def __init__(self) -> None:
        self._costs: OrderedDict[_Kind, _Cost] = OrderedDict()
        self._unsaved: set[_Kind] = set()

    def stepped(self, stage: Stage, share: float, *, device_s: float, step_s: float) -> None:
        """Learn from a lane that has done `share` (0..1) of the stage's steps; seconds as in Progress."""
        work = share * _work(stage)
        self._observe(_kind(stage), device_s / work, step_s / work)

    def decoded(self, stage: Stage, seconds: float) -> None:
        """Learn from an image that took so many device seconds to decode."""
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
        """What one image costs in each of its stages; None while nothing is known of one of them."""
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
        """The kind's own cost, or that of its stage with the nearest number of pixels, then with its sampler."""
        if kind in self._costs:
            return self._costs[kind]

        def unlikeness(other: _Kind) -> tuple[float, bool]:
            return abs(math.log(other.pixels / kind.pixels)), other.sampler != kind.sampler

        known = [other for other in self._costs if other.stage == kind.stage and other.sampler]
        return self._costs[min(known, key=unlikeness)] if known else None

    def unsaved(self) -> tuple[LearnedCost, ...]:
        """The costs that have changed since the last call."""
        changed, self._unsaved = self._unsaved, set()
        return tuple(
            LearnedCost(*kind, cost.device_s.value, cost.lane_s.value)
            for kind, cost in self._costs.items()
            if kind in changed
        )

    def begin_with(self, learned: Iterable[LearnedCost]) -> None:
        """Take over stored costs, the latest last, before anything is learned here."""
        for cost in [cost for cost in learned if cost.usable][-_KINDS:]:
            kind = _Kind(cost.stage, cost.sampler, cost.pixels)
            self._costs[kind] = _Cost(Mean(_COST_SHARE, cost.device_s), Mean(_COST_SHARE, cost.lane_s))


def planned_steps(stage: Stage) -> int:
    """The steps of one image in a stage that hasn't begun: its share of the schedule."""
    return max(1, round(stage.steps * stage.share))


def _kind(stage: Stage) -> _Kind:
    return _Kind(stage.stage, stage.sampler, _pixels(stage))


def _work(stage: Stage) -> float:
    """The work of all steps of one image: rows x pixels x steps of the schedule."""
    return stage.rows * _pixels(stage) * stage.steps * stage.share


def _pixels(stage: Stage) -> int:
    return stage.width * stage.height
