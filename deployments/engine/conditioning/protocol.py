"""What steers a lane besides its text, of whatever kind: what a kind has to be.

A kind (ControlNet is one) is a module of this package and a line in registry.py; lanes, batches and the loop see it
through what is described here:

1. Off the device's thread a `Finder` finds and hashes the weights that a request names.
2. When the lane starts its `Conditioner` brings them to the device, beside those that lanes use, and prepares a
   `LaneCondition` of each part of the request. The lane holds it to its end.
3. While the same lanes step together, their conditions of one kind are one `BatchCondition`.
4. At each step that makes a `StepContribution`: further arguments of the UNet's forward.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from deployments.engine.checkpoints.denoiser_weights import DenoiserWeights
from deployments.engine.types import DenoiseRequest
from deployments.engine.unet import UnetInputs


class WeightFile(Protocol):
    """Weights that a request names. hash: sha256 (hex) of their bytes, for the manifest and for snapshots."""

    @property
    def name(self) -> str: ...
    @property
    def hash(self) -> str: ...


ConditioningFiles = Mapping[str, Sequence[WeightFile]]
"""What a request names, by kind: the field of DenoiseRequest that names it. Only the kinds that it names are there."""


class DeviceWeights(Protocol):
    """The same on the device, shared by all lanes that use them. bytes: there."""

    @property
    def hash(self) -> str: ...
    @property
    def bytes(self) -> int: ...


class Finder(Protocol):
    """Finds what requests name, in any thread."""

    def find(self, request: DenoiseRequest) -> Sequence[WeightFile]:
        """The files of this kind, in the request's order; none if it names none. Raises InvalidRequest."""
        ...


class LaneCondition(ABC):
    """What one part of a request is to its lane. Equal to itself alone.

    weights: those it needs. span: evaluations of the lane in which it counts.
    origin: all that its numbers follow from, by repr(): a snapshot goes on only with the same.
    """

    weights: DeviceWeights
    span: range
    origin: tuple[object, ...]

    @classmethod
    @abstractmethod
    def lay_out(cls, rows: Sequence[tuple[int, Self]], bucket: int, *, pinned: bool) -> "BatchCondition":
        """The conditions of this kind, for the rows of a batch.

        Args:
            rows: (index in the bucket, condition) pairs, by rising index; an index comes once for each of its
                conditions.
            bucket: rows of the batch, padding included.
            pinned: the batch is of reproducible lanes: whatever is computed has `bucket` rows.
        """


class BatchCondition(Protocol):
    """All conditions of one kind in a batch, while the same lanes go on together."""

    def contribution(self, inputs: UnetInputs) -> "StepContribution":
        """Of one step. inputs: the UNet's, of all rows of the bucket."""
        ...


class StepContribution(Protocol):
    """What a step's UNet forward takes besides."""

    def arguments(self, rows: slice) -> Mapping[str, Any]:
        """Keyword arguments of UNet2DConditionModel's forward for some rows of the bucket."""
        ...


@dataclass(frozen=True, slots=True)
class Timeline:
    """evaluations: UNet evaluations that a lane takes. total: those that fractions of its time are of."""

    evaluations: int
    total: float

    def span(self, start: float, end: float) -> range:
        """The lane's evaluations between two fractions: diffusers' control_guidance_start and _end."""
        inside = [
            step for step in range(self.evaluations) if step / self.total >= start and (step + 1) / self.total <= end
        ]
        return range(inside[0], inside[-1] + 1) if inside else range(0)


class Conditioner(Protocol):
    """One kind on one device, in the device's thread."""

    def has_room(self, files: Sequence[Any], in_use: Collection[DeviceWeights]) -> bool:
        """Whether a request's files can be there beside those that lanes use; True of what never can be."""
        ...

    def prepare(
        self,
        request: DenoiseRequest,
        files: Sequence[Any],
        checkpoint: DenoiserWeights,
        timeline: Timeline,
        in_use: Collection[DeviceWeights],
    ) -> Sequence[LaneCondition]:
        """A lane's conditions, in the request's order.

        Args:
            files: what this kind's Finder found.
            in_use: weights of any kind that lanes use, which have to stay.

        Raises:
            InvalidRequest: one can't be read, or isn't for this checkpoint.
            DoesNotFit: they are too large together.
        """
        ...
