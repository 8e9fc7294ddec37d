"""The classes of a kind of conditioning, which steers a lane besides its text.

A kind, such as ControlNet, is a module of this package and a line in registry.py. Lanes, batches and the loop use it
through these classes:

1. Off the device's thread a `Finder` finds and hashes the weights that a request names.
2. When the lane starts, the `Conditioner` brings them to the device and prepares `LaneCondition`s, which the lane keeps
   to its end.
3. While a batch's lanes stay the same, their conditions of one kind are one `BatchCondition`.
4. At each step that returns a `StepContribution`: further arguments of the UNet's forward, or changes of its layers.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

from deployments.engine.checkpoints.denoiser_weights import DenoiserWeights
from deployments.engine.memory.weight_pool import DeviceWeights
from deployments.engine.types import Conditioning, DenoiseRequest
from deployments.engine.unet import UnetInputs


class WeightFile(Protocol):
    """Weights that a request names; `hash` is the SHA-256 (hex) of their bytes, for manifest and snapshots."""

    @property
    def name(self) -> str: ...
    @property
    def hash(self) -> str: ...


ConditioningFiles = Mapping[str, Sequence[WeightFile]]
"""A request's files by kind: the field of DenoiseRequest that names them. Only kinds that the request uses."""


class Finder(Protocol):
    """Finds the files that requests name, in any thread."""

    def find(self, request: DenoiseRequest) -> Sequence[WeightFile]:
        """The files of this kind, in the request's order; none if it names none. Raises InvalidRequest."""
        ...


class LaneCondition(ABC):
    """One condition of a lane, compared by identity.

    Attributes:
        weights: that it needs; None for none.
        span: UNet evaluations of the lane in which it applies.
        origin: all that its numbers depend on, told apart by repr(): a lane goes on from a snapshot only with the same.
    """

    weights: DeviceWeights | None
    span: range
    origin: tuple[object, ...]

    @classmethod
    @abstractmethod
    def lay_out(cls, rows: "Sequence[ConditionedRow[Self]]", bucket: int, *, pinned: bool) -> "BatchCondition":
        """The conditions of this kind, for the rows of a batch.

        Args:
            rows: by rising index; an index comes once for each of its conditions, in their order.
            bucket: rows of the batch, padding included.
            pinned: whether the lanes are reproducible: whatever is computed has `bucket` rows then.
        """


ConditionT = TypeVar("ConditionT", bound=LaneCondition)


@dataclass(frozen=True, slots=True)
class ConditionedRow(Generic[ConditionT]):
    """A row of a batch and one of its conditions.

    Attributes:
        index: in the bucket.
        condition: of its lane.
        negative: whether it is the row of the lane's negative prompt.
    """

    index: int
    condition: ConditionT
    negative: bool


class BatchCondition(Protocol):
    """All conditions of one kind in a batch, while its lanes stay the same."""

    def contribution(self, inputs: UnetInputs) -> "StepContribution":
        """The contribution to one step; `inputs` of the UNet, for all rows of the bucket."""
        ...


class StepContribution(Protocol):
    """What a conditioning adds to one step's UNet forward."""

    def arguments(self, rows: slice) -> Mapping[str, Any]:
        """Keyword arguments of UNet2DConditionModel's forward that no other kind gives, for some rows of the bucket."""
        ...

    def hooked(self) -> AbstractContextManager[None]:
        """What it changes in the UNet's layers, for forwards within the block, in the device's thread.

        The forwards may run in other threads, for some rows each: `row_threads.rows_here` says which.
        """
        ...


@dataclass(frozen=True, slots=True)
class Timeline:
    """The time of a lane.

    Attributes:
        evaluations: UNet evaluations that the lane takes.
        total: UNet evaluations that fractions of its time refer to.
    """

    evaluations: int
    total: float

    def span(self, start: float, end: float) -> range:
        """The lane's evaluations between two fractions, as diffusers' control_guidance_start and _end."""
        inside = [
            step for step in range(self.evaluations) if step / self.total >= start and (step + 1) / self.total <= end
        ]
        return range(inside[0], inside[-1] + 1) if inside else range(0)


class Conditioner(Protocol):
    """One kind of conditioning on one device, in the device's thread."""

    def has_room(self, files: Sequence[Any], in_use: Collection[DeviceWeights]) -> bool:
        """Whether a request's files fit beside those that lanes use; True if they never fit: then `prepare` raises."""
        ...

    def prepare(
        self,
        request: DenoiseRequest,
        text: Conditioning,
        files: Sequence[Any],
        checkpoint: DenoiserWeights,
        timeline: Timeline,
        in_use: Collection[DeviceWeights],
    ) -> Sequence[LaneCondition]:
        """A lane's conditions, in the request's order.

        Args:
            request: of the lane.
            text: that came with it from the encoder.
            files: from this kind's Finder.
            checkpoint: of the lane.
            timeline: of the lane.
            in_use: weights, of any kind, that lanes use and that must stay.

        Raises:
            InvalidRequest: one can't be read, or isn't for this checkpoint.
            DoesNotFit: they are too large together.
        """
        ...
