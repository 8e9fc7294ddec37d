"""What ControlNets add to one step of a batch: each is run for the rows that it steers, the others get zeros.

So lanes with and without share the UNet's forward. A ControlNet's own forward is padded to a bucket as the UNet's is,
that of reproducible lanes to their pinned one: a lane's bits don't depend on who else is steered. Knows batches and
rows; nothing of queues or samplers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from deployments.engine.conditioning.controlnet import Controlnet, LaneControl
from deployments.engine.denoising.unet_inputs import UnetInputs
from deployments.engine.lanes.lane import Lane
from deployments.engine.row_threads import RowThreads
from deployments.engine.scheduling.batcher import Batch
from deployments.engine.scheduling.step_costs import bucket_for


@dataclass(frozen=True, slots=True)
class Residuals:
    """For all rows of a batch: what is added to each level of the UNet's way down, and to its middle."""

    down: tuple[torch.Tensor, ...] = ()
    middle: torch.Tensor | None = None

    def of(self, rows: slice) -> dict[str, Any]:
        """UnetForward's arguments for some rows."""
        if self.middle is None:
            return {}
        return {
            "down": tuple(level[rows] for level in self.down),
            "middle": self.middle[rows],
        }


@dataclass(frozen=True, slots=True)
class _Steered:
    """The rows that one ControlNet steers.

    padded: their indices, the last one repeated up to the bucket. rows: without the padding. seen, scales: of padded.
    """

    controlnet: Controlnet
    padded: torch.Tensor
    rows: torch.Tensor
    seen: torch.Tensor
    scales: torch.Tensor


class _Composition(NamedTuple):
    """Of a batch: its bucket, and by lane its rows and what steers its next step."""

    bucket: int
    rows: tuple[int, ...]
    controls: tuple[tuple[LaneControl, ...], ...]


class Steering:
    """The ControlNets' part of a denoiser's steps; remembers how the last step was laid out."""

    def __init__(
        self, device: torch.device, dtype: torch.dtype, memory_format: torch.memory_format, row_threads: RowThreads
    ) -> None:
        self._device, self._dtype, self._memory_format = device, dtype, memory_format
        self._row_threads = row_threads
        self._laid_out: _Composition | None = None
        self._steered: Sequence[_Steered] = ()

    def residuals(self, batch: Batch[Lane], inputs: UnetInputs) -> Residuals:
        """Of the batch's next step. inputs: of its rows, padding included, without what the UNet alone takes."""
        total: list[torch.Tensor] = []
        for steered in self._layout_of(batch):
            size = len(steered.rows)
            for number, level in enumerate(self._levels(steered, inputs.rows(steered.padded))):
                if number == len(total):
                    shape = (batch.bucket, *level.shape[1:])
                    zeros = torch.empty(
                        shape, dtype=level.dtype, device=level.device, memory_format=self._memory_format
                    )
                    total.append(zeros.zero_())
                total[number].index_add_(0, steered.rows, (level * steered.scales)[:size])
        return Residuals(tuple(total[:-1]), total[-1]) if total else Residuals()

    def _levels(self, steered: _Steered, inputs: UnetInputs) -> Iterator[torch.Tensor]:
        """What one ControlNet says, cut among threads as the UNet's forward is."""

        def part(rows: slice) -> list[torch.Tensor]:
            return steered.controlnet.residuals(inputs.rows(rows), steered.seen[rows])

        for of_level in zip(*self._row_threads.parts(part, len(steered.padded)), strict=True):
            yield of_level[0] if len(of_level) == 1 else torch.cat(of_level)

    def forget_batch(self) -> None:
        """Drop the last batch's lanes and control images."""
        self._laid_out, self._steered = None, ()

    def _layout_of(self, batch: Batch[Lane]) -> Sequence[_Steered]:
        composition = _Composition(
            batch.bucket, tuple(lane.rows for lane in batch.lanes), tuple(tuple(lane.controls) for lane in batch.lanes)
        )
        if composition != self._laid_out:
            self._laid_out = composition
            self._steered = self._lay_out(batch, composition)
        return self._steered

    def _lay_out(self, batch: Batch[Lane], composition: _Composition) -> list[_Steered]:
        found: dict[Controlnet, list[tuple[int, LaneControl]]] = {}
        row = 0
        for rows, controls in zip(composition.rows, composition.controls, strict=True):
            for control in controls:
                found.setdefault(control.controlnet, []).extend((row + n, control) for n in range(rows))
            row += rows
        # in an order that doesn't depend on who is in the batch: so are sums of more than two
        return [
            self._of(batch, controlnet, found[controlnet]) for controlnet in sorted(found, key=lambda one: one.hash)
        ]

    def _of(self, batch: Batch[Lane], controlnet: Controlnet, rows: list[tuple[int, LaneControl]]) -> _Steered:
        bucket = batch.bucket if batch.lanes[0].key.pinned else bucket_for(len(rows))
        padded = rows + rows[-1:] * (bucket - len(rows))
        indices = torch.tensor([row for row, _ in padded]).to(self._device)
        scales = torch.tensor([control.scale for _, control in padded]).to(self._device, self._dtype)
        seen = torch.stack([control.seen for _, control in padded])
        return _Steered(
            controlnet,
            indices,
            indices[: len(rows)],
            seen.contiguous(memory_format=self._memory_format),
            scales.view(-1, 1, 1, 1),
        )
