"""The inputs that a batch's steps have in common while its lanes stay the same: rows, texts and other conditions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from deployments.engine.adapters.lora import AdaptedModel, AdaptedRows, AdapterPlan
from deployments.engine.batch import Batch
from deployments.engine.conditioning.protocol import BatchCondition, ConditionedRow, LaneCondition
from deployments.engine.denoising.guidance import Composition, guidance_embedding
from deployments.engine.denoising.regions import Blend
from deployments.engine.device import pinned_numbers
from deployments.engine.lanes.lane import Lane, LaneConditioning


@dataclass(frozen=True, slots=True)
class KeptParts:
    """The lanes of a batch whose steps put back what isn't to be painted; mask, clean, noise stacked as in LaneImage.

    Attributes:
        lanes: their indices in the batch.
        rows: the same as a tensor on the device.
    """

    lanes: tuple[int, ...]
    rows: torch.Tensor
    mask: torch.Tensor
    clean: torch.Tensor
    noise: torch.Tensor


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """The rows of a batch and their inputs; those of UnetInputs are as there.

    Attributes:
        texts: of the lanes, when the layout was made.
        lane_conditions: likewise.
        row_lanes: for each row of the bucket, the index of its lane.
        indices: (3, bucket), int64: `rows`, `positive` and `negative`, the latter two padded with zeros.
        guidance: (lanes, 1, 1, 1), float32, guidance scales.
        guidance_embedding: (bucket, channels), for a UNet distilled with guidance as a condition (LCM).
        hints: (lanes, channels + 1, height, width), for a UNet that takes them.
        kept: None if no lane keeps a part of an image.
        adapters: the UNet's LoRAs, by rows.
        conditions: of the rows, one for each kind of conditioning.
        compositions: of the lanes whose prompts are composed.
        blends: of the lanes whose images have regions.
    """

    lanes: tuple[Lane, ...]
    texts: tuple[LaneConditioning, ...]
    lane_conditions: tuple[tuple[LaneCondition, ...], ...]
    bucket: int
    row_lanes: tuple[int, ...]
    indices: torch.Tensor
    guidance: torch.Tensor
    hidden_states: torch.Tensor
    text_embeds: torch.Tensor | None
    time_ids: torch.Tensor | None
    guidance_embedding: torch.Tensor | None
    mask: torch.Tensor | None
    hints: torch.Tensor | None
    kept: KeptParts | None
    adapters: AdapterPlan
    conditions: tuple[BatchCondition, ...]
    compositions: tuple[Composition, ...]
    blends: tuple[Blend, ...]

    @property
    def rows(self) -> torch.Tensor:
        """(bucket,), the index of each row's lane."""
        return self.indices[0]

    @property
    def positive(self) -> torch.Tensor:
        """(lanes,), the row of each lane's prompt, before those that it is composed with or its regions'."""
        return self.indices[1, : len(self.lanes)]

    @property
    def negative(self) -> torch.Tensor:
        """(lanes,), the last row of each lane: its negative prompt's, if it has guidance."""
        return self.indices[2, : len(self.lanes)]

    @property
    def timesteps(self) -> list[float]:
        """The timestep of each row of the bucket, for the next step."""
        return [self.lanes[index].current.timestep for index in self.row_lanes]

    def fits(self, batch: Batch[Lane]) -> bool:
        """Whether the layout is that of the batch's next step."""
        if self.bucket != batch.bucket or self.lanes != batch.lanes:
            return False
        same_texts = self.texts == tuple(lane.text for lane in batch.lanes)
        return same_texts and self.lane_conditions == tuple(lane.conditions for lane in batch.lanes)


class BatchLayouts:
    """Lays out one UNet's batches, and keeps the last layout."""

    def __init__(
        self, adapted: AdaptedModel, device: torch.device, dtype: torch.dtype, guidance_channels: int | None
    ) -> None:
        """`dtype` of the UNet; `guidance_channels` of its guidance embedding, None if it takes none."""
        self._adapted = adapted
        self._device, self._dtype = device, dtype
        self._guidance_channels = guidance_channels
        self._last: BatchLayout | None = None

    def of(self, batch: Batch[Lane]) -> BatchLayout:
        """The batch's layout; a new one if the last one was for other lanes or conditions."""
        if self._last is None or not self._last.fits(batch):
            self._last = self._lay_out(batch)
        return self._last

    def forget(self, lane: Lane) -> None:
        """Drop the last layout if this lane, which has ended, is in it: it keeps the lane's conditions alive."""
        if self._last is not None and lane in self._last.lanes:
            self._last = None

    def _lay_out(self, batch: Batch[Lane]) -> BatchLayout:
        """Each lane's rows one after the other, the prompt's before the negative prompt's; then padding."""
        lanes, device = batch.lanes, self._device
        row_lanes = [index for index, lane in enumerate(lanes) for _ in range(lane.rows)]
        positive = [row_lanes.index(index) for index in range(len(lanes))]
        negative = [row + lane.rows - 1 for row, lane in zip(positive, lanes, strict=True)]
        of_lanes = tuple(row_lanes)
        padding = batch.bucket - len(row_lanes)
        row_lanes += row_lanes[-1:] * padding
        texts = tuple(lane.text for lane in lanes)
        lane_conditions = tuple(lane.conditions for lane in lanes)

        def rows_of(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
            there = [tensor for tensor in tensors if tensor is not None]
            return padded(torch.cat(there), padding) if there else None

        unused = [0] * (batch.bucket - len(lanes))
        indices = torch.tensor([row_lanes, positive + unused, negative + unused], device=device)
        return BatchLayout(
            lanes=lanes,
            texts=texts,
            lane_conditions=lane_conditions,
            bucket=batch.bucket,
            row_lanes=tuple(row_lanes),
            indices=indices,
            guidance=pinned_numbers([lane.guidance_scale for lane in lanes], device).view(-1, 1, 1, 1),
            hidden_states=padded(torch.cat([text.hidden_states for text in texts]), padding),
            text_embeds=rows_of([text.pooled for text in texts]),
            time_ids=rows_of([text.time_ids for text in texts]),
            guidance_embedding=self._guidance_embedding([lanes[index].request.guidance_scale for index in row_lanes]),
            mask=rows_of([text.mask for text in texts]),
            hints=_hints(lanes),
            kept=self._kept(lanes),
            adapters=self._adapted.plan(self._adapted_rows(lanes, positive)),
            conditions=_by_kind(
                [
                    ConditionedRow(row, condition, negative=texts[index].guided and row == negative[index])
                    for row, index in enumerate(of_lanes)
                    for condition in lane_conditions[index]
                ],
                batch.bucket,
                pinned=lanes[0].key.pinned,
            ),
            compositions=tuple(
                Composition(index, positive[index], text.weights)
                for index, text in enumerate(texts)
                if len(text.weights) > 1 and text.shares is None
            ),
            blends=tuple(
                Blend(index, positive[index], text.shares, text.guided)
                for index, text in enumerate(texts)
                if text.shares is not None
            ),
        )

    def _guidance_embedding(self, scales: Sequence[float]) -> torch.Tensor | None:
        if self._guidance_channels is None:
            return None
        return guidance_embedding(scales, self._guidance_channels).to(self._device, self._dtype)

    def _adapted_rows(self, lanes: Sequence[Lane], firsts: Sequence[int]) -> list[AdaptedRows]:
        """The rows that LoRAs apply to, in parts that are never split.

        A part is a lane's rows; on a CPU, whose threads share the rows of a bucket, and where regions have LoRAs of
        their own, one row. `firsts`: each lane's first row.
        """
        parts = []
        for first, lane in zip(firsts, lanes, strict=True):
            of_rows = lane.row_adapters
            single = self._device.type == "cpu" or any(adapters is not of_rows[0] for adapters in of_rows)
            portion = 1 if single else lane.rows
            parts += [
                AdaptedRows(first + row, first + row + portion, of_rows[row])
                for row in range(0, lane.rows, portion)
                if of_rows[row]
            ]
        return parts

    def _kept(self, lanes: Sequence[Lane]) -> KeptParts | None:
        found = [(index, lane.image) for index, lane in enumerate(lanes) if lane.image.mask is not None]
        if not found:
            return None
        indices = tuple(index for index, _ in found)
        images = [image for _, image in found]
        return KeptParts(
            lanes=indices,
            rows=torch.tensor(indices, device=self._device),
            mask=torch.stack([image.mask for image in images if image.mask is not None]),
            clean=torch.stack([image.clean for image in images if image.clean is not None]),
            noise=torch.stack([image.noise for image in images if image.noise is not None]),
        )


def _by_kind(rows: Sequence[ConditionedRow[LaneCondition]], bucket: int, *, pinned: bool) -> tuple[BatchCondition, ...]:
    """The conditions of a batch's rows, by kind; arguments as of LaneCondition.lay_out."""
    by_kind: dict[type[LaneCondition], list[ConditionedRow[Any]]] = {}
    for row in rows:
        by_kind.setdefault(type(row.condition), []).append(row)
    return tuple(kind.lay_out(of_kind, bucket, pinned=pinned) for kind, of_kind in by_kind.items())


def padded(rows: torch.Tensor, padding: int) -> torch.Tensor:
    """`rows` with its last one repeated: padding costs a row's time and changes no bit of the others."""
    return torch.cat([rows, rows[-1:].expand(padding, *rows.shape[1:])]) if padding else rows


def _hints(lanes: Sequence[Lane]) -> torch.Tensor | None:
    hints = [lane.image.hint for lane in lanes if lane.image.hint is not None]
    return torch.stack(hints) if hints else None
