"""What a generation costs: device seconds by stage, predicted from what the stages have charged of late.

Work is counted in UNet rows times pixels times steps of the schedule. What a unit of it costs is learned for each
stage, sampler and number of pixels from the lanes' own accounts: a lane's share of each step that it took part in. So a
unit is cheap while batches are full, and a sampler that evaluates twice a step costs twice as much. A kind that was
never seen is taken for the most similar one of its stage. What one process has learned another can begin with.
Pure: knows no clock, no queue, no jobs.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

_KEEP = 0.95  # how much of what was known still counts after one more observation
_KINDS = 256  # kinds of work that are remembered, the latest ones


# whatever a job is: its stages know what to make of it
Asked = Any


class Drawn(Protocol):
    """What a stage works on. sampler: what its steps' cost depends on besides: of an enlarged picture the model."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def sampler(self) -> str: ...


class Stage(Protocol):
    """A stage of a plan, as far as it costs something: as DenoiseStage and UpscaleStage have it."""

    @property
    def stage(self) -> str: ...
    @property
    def checkpoint(self) -> str: ...
    @property
    def output(self) -> Literal["image", "latents"]: ...
    @property
    def share(self) -> float: ...

    def drawn(self, asked: Asked, /) -> Drawn: ...
    def rows(self, asked: Asked, /) -> float: ...


@dataclass(frozen=True, slots=True)
class StageWork:
    """One image in one stage.

    device_s: seconds of the device that it is charged. lane_s: seconds that its steps and its decoding take one after
    the other, in batches as they are now: no image is done faster.
    """

    stage: str
    device_s: float
    lane_s: float


@dataclass(frozen=True, slots=True)
class LearnedCost:
    """What a kind of work has cost, as it is handed on: sums over what was seen, older things counting less.

    sampler, pixels: "" and 0 for decoding. work: rows x pixels x steps, or pixels decoded.
    device_s, lane_s: what it was charged, how long it took.
    """

    stage: str
    sampler: str
    pixels: int
    work: float
    device_s: float
    lane_s: float

    @property
    def usable(self) -> bool:
        """A prediction can be made of it; whoever wrote it may have been of another mind."""
        sums = (self.work, self.device_s, self.lane_s)
        named = self.pixels > 0 if self.sampler else self.pixels == 0
        return named and all(math.isfinite(one) and one > 0 for one in sums)


@dataclass(slots=True)
class _Costs:
    """The sums of a LearnedCost. unsaved: they have changed since they were last handed on."""

    work: float = 0.0
    device_s: float = 0.0
    lane_s: float = 0.0
    unsaved: bool = False

    def add(self, work: float, device_s: float, lane_s: float) -> None:
        self.work = _KEEP * self.work + work
        self.device_s = _KEEP * self.device_s + device_s
        self.lane_s = _KEEP * self.lane_s + lane_s
        self.unsaved = True


@dataclass(frozen=True, slots=True)
class _Kind:
    stage: str
    sampler: str
    pixels: int

    def unlike(self, other: "_Kind") -> tuple[float, bool]:
        """How little this says about the other, of the same stage."""
        return abs(math.log(self.pixels / other.pixels)), self.sampler != other.sampler


@dataclass(slots=True)
class WorkModel:
    """Learned costs, and predictions from them."""

    _steps: OrderedDict[_Kind, _Costs] = field(default_factory=OrderedDict)
    _decoding: dict[str, _Costs] = field(default_factory=dict)

    def stepped(self, generation: Asked, stage: Stage, share: float, *, device_s: float, step_s: float) -> None:
        """A lane has done `share` (0..1) of the stage's steps, for so much of the device, in so much time."""
        kind = _kind(generation, stage)
        costs = self._steps.setdefault(kind, _Costs())
        costs.add(share * _work(generation, stage), device_s, step_s)
        self._steps.move_to_end(kind)
        if len(self._steps) > _KINDS:
            self._steps.popitem(last=False)

    def decoded(self, generation: Asked, stage: Stage, seconds: float) -> None:
        """An image was decoded in so much of the device's time."""
        self._decoding.setdefault(stage.stage, _Costs()).add(_pixels(generation, stage), seconds, seconds)

    def predict(self, generation: Asked, stages: Sequence[Stage]) -> tuple[StageWork, ...] | None:
        """What one image costs in each of its stages; None while one of them has never been seen at work."""
        found = []
        for stage in stages:
            kind = _kind(generation, stage)
            known = self._steps.get(kind) or self._similar(kind)
            if known is None:
                return None
            scale = _work(generation, stage) / known.work
            decoding = self._decoding.get(stage.stage) if stage.output == "image" else None
            decode_s = 0.0 if decoding is None else _pixels(generation, stage) * decoding.device_s / decoding.work
            found.append(StageWork(stage.stage, scale * known.device_s + decode_s, scale * known.lane_s + decode_s))
        return tuple(found)

    def unsaved(self) -> tuple[LearnedCost, ...]:
        """What was learned since this was last asked, to be kept for others."""
        stepping = [((kind.stage, kind.sampler, kind.pixels), costs) for kind, costs in self._steps.items()]
        decoding = [((stage, "", 0), costs) for stage, costs in self._decoding.items()]
        found = []
        for kind, costs in (*stepping, *decoding):
            if costs.unsaved:
                costs.unsaved = False
                found.append(LearnedCost(*kind, costs.work, costs.device_s, costs.lane_s))
        return tuple(found)

    def begin_with(self, learned: Iterable[LearnedCost]) -> None:
        """Take over what others have learned, the latest last, before anything is learned here."""
        for one in [one for one in learned if one.usable][-_KINDS:]:
            costs = _Costs(one.work, one.device_s, one.lane_s)
            if one.sampler:
                self._steps[_Kind(one.stage, one.sampler, one.pixels)] = costs
            else:
                self._decoding[one.stage] = costs

    def _similar(self, kind: _Kind) -> _Costs | None:
        known = [other for other in self._steps if other.stage == kind.stage]
        return self._steps[min(known, key=kind.unlike)] if known else None


def _kind(generation: Asked, stage: Stage) -> _Kind:
    return _Kind(stage.stage, stage.drawn(generation).sampler, _pixels(generation, stage))


def _work(generation: Asked, stage: Stage) -> float:
    """Of all steps of one image: rows x pixels x steps of the schedule."""
    return stage.rows(generation) * _pixels(generation, stage) * stage.drawn(generation).steps * stage.share


def _pixels(generation: Asked, stage: Stage) -> int:
    drawn = stage.drawn(generation)
    return drawn.width * drawn.height
