"""ControlNets (arXiv:2302.05543): their embedding of a control image, their residuals, and which are on the device.

A ControlNet is a copy of a UNet's way down that also takes a control image, and whose outputs are added to the UNet's.
It runs for the rows that it steers, so that lanes with and without one share the UNet's forward. Its own forward is
padded to a bucket, as the UNet's is, so that a lane's bits don't depend on the other lanes.
"""

import hashlib
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel

from deployments.engine.attention import use_attention
from deployments.engine.batch import bucket_for
from deployments.engine.checkpoints.denoiser_weights import DenoiserWeights
from deployments.engine.checkpoints.weight_folder import files_state
from deployments.engine.conditioning.controlnet_files import ControlnetFile, ControlnetFolder
from deployments.engine.conditioning.controlnet_weights import misfit, read_controlnet
from deployments.engine.conditioning.protocol import ConditionedRow, LaneCondition, Timeline
from deployments.engine.config import EngineSettings
from deployments.engine.device import Device
from deployments.engine.errors import CheckpointError, DoesNotFit, InvalidRequest
from deployments.engine.memory.weight_pool import DeviceWeights, WeightPool
from deployments.engine.row_threads import RowThreads
from deployments.engine.types import Conditioning, Control, DenoiseRequest, Pixels
from deployments.engine.unet import UnetInputs


class Controlnet:
    """A ControlNet on the device, as DeviceWeights."""

    def __init__(
        self, hash_: str, model: ControlNetModel, row_threads: RowThreads, memory_format: torch.memory_format
    ) -> None:
        """Wrap a model, whose embedding of control images is taken out of its forward.

        Args:
            hash_: SHA-256 (hex) over its weight files.
            model: on the device.
            row_threads: split a forward's rows on a CPU.
            memory_format: of the model's convolutions.
        """
        self.hash = hash_
        self.memory_format = memory_format
        self.config: Mapping[str, Any] = model.config
        self.bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
        self._row_threads = row_threads
        self._embedding = model.controlnet_cond_embedding
        # a control image is the same at every step: `look_at` embeds it once, and the model gets the embedding
        model.controlnet_cond_embedding = torch.nn.Identity()
        self._model = model
        self._here = threading.local()  # the mask of the rows that a thread computes
        for block in (*model.down_blocks, model.mid_block):
            if getattr(block, "has_cross_attention", False):
                block.register_forward_pre_hook(self._masked, with_kwargs=True)

    def look_at(self, image: Pixels) -> torch.Tensor:
        """Embed a control image.

        Args:
            image: (height, width, 3), uint8.

        Returns:
            (channels, height / 8, width / 8), in the model's dtype.
        """
        weight = self._embedding.conv_in.weight
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].to(weight.device).float().div(255.0)
        seen: torch.Tensor = self._embedding(pixels.to(weight.dtype))[0]
        return seen

    def residuals(self, inputs: UnetInputs, seen: torch.Tensor) -> Iterator[torch.Tensor]:
        """The residuals of the UNet's way down, level by level, then of its middle block.

        Args:
            inputs: of the UNet; channels beyond the latents are left out.
            seen: (rows, channels, height / 8, width / 8), each row's embedded control image.

        Yields:
            (rows, channels, h, w), in the model's dtype.
        """
        inputs = replace(inputs, sample=inputs.sample[:, : self.config["in_channels"]])

        def part(rows: slice) -> list[torch.Tensor]:
            return self._forward(inputs.rows(rows), seen[rows])

        for level in zip(*self._row_threads.parts(part, len(seen)), strict=True):
            yield level[0] if len(level) == 1 else torch.cat(level)

    def _forward(self, inputs: UnetInputs, seen: torch.Tensor) -> list[torch.Tensor]:
        self._here.mask = inputs.mask
        try:
            down, middle = self._model(
                inputs.sample,
                inputs.timesteps,
                inputs.hidden_states,
                seen,
                added_cond_kwargs=inputs.added,
                return_dict=False,
            )
        finally:
            del self._here.mask
        return [*down, middle]

    def _masked(self, block: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Pass the mask of the text to the blocks, as a UNet does; ControlNetModel has no argument for it."""
        if self._here.mask is None:
            return None
        bias = (1 - self._here.mask) * -10_000.0
        return args, kwargs | {"encoder_attention_mask": bias[:, None]}


@dataclass(frozen=True, slots=True, eq=False)
class LaneControl(LaneCondition):
    """A ControlNet that steers a lane.

    Attributes:
        seen: the embedded control image, as `Controlnet.look_at` returns it.
        scale: factor of the residuals.
    """

    weights: Controlnet
    span: range
    origin: tuple[object, ...]
    seen: torch.Tensor
    scale: float

    @classmethod
    def lay_out(cls, rows: "Sequence[ConditionedRow[LaneControl]]", bucket: int, *, pinned: bool) -> "BatchControls":
        """As LaneCondition.lay_out."""
        # a lane's second image for the same ControlNet has a forward of its own, so that a forward has each row once
        earlier: Counter[tuple[Controlnet, int]] = Counter()
        by_net: dict[tuple[Controlnet, int], list[tuple[int, LaneControl]]] = {}
        for row in rows:
            net = row.condition.weights
            by_net.setdefault((net, earlier[net, row.index]), []).append((row.index, row.condition))
            earlier[net, row.index] += 1
        # an order that doesn't depend on the batch, because sums of more than two depend on the order
        steered = sorted(by_net.items(), key=lambda item: (item[0][0].hash, item[0][1]))
        return BatchControls(
            tuple(SteeredRows.of(net, own, bucket if pinned else bucket_for(len(own))) for (net, _), own in steered),
            bucket,
        )


@dataclass(frozen=True, slots=True)
class SteeredRows:
    """The rows of a batch that one ControlNet steers.

    Attributes:
        padded: (n,), int64, their indices, the last one repeated up to a bucket of their own.
        count: without the padding.
        seen: (n, channels, height, width), embedded control images, in the ControlNet's dtype.
        scales: (n, 1, 1, 1), likewise.
    """

    controlnet: Controlnet
    padded: torch.Tensor
    count: int
    seen: torch.Tensor
    scales: torch.Tensor

    @classmethod
    def of(cls, controlnet: Controlnet, rows: Sequence[tuple[int, LaneControl]], bucket: int) -> "SteeredRows":
        """From (index in the batch, condition) pairs, padded to `bucket` rows."""
        padded = [*rows, *[rows[-1]] * (bucket - len(rows))]
        seen = torch.stack([control.seen for _, control in padded]).contiguous(memory_format=controlnet.memory_format)
        scales = torch.tensor([control.scale for _, control in padded], dtype=torch.float32)
        return cls(
            controlnet,
            torch.tensor([row for row, _ in padded], dtype=torch.int64).to(seen.device),
            len(rows),
            seen,
            scales.to(seen.device, seen.dtype).view(-1, 1, 1, 1),
        )


@dataclass(frozen=True, slots=True)
class BatchControls:
    """All ControlNets of a batch, whose bucket has `bucket` rows."""

    nets: tuple[SteeredRows, ...]
    bucket: int

    def contribution(self, inputs: UnetInputs) -> "Residuals":
        """The sums of the residuals; zeros for rows without a ControlNet."""
        total: list[torch.Tensor] = []
        for steered in self.nets:
            levels = steered.controlnet.residuals(inputs.rows(steered.padded), steered.seen)
            for number, level in enumerate(levels):
                if number == len(total):
                    zeros = torch.empty(
                        (self.bucket, *level.shape[1:]),
                        dtype=level.dtype,
                        device=level.device,
                        memory_format=steered.controlnet.memory_format,
                    )
                    total.append(zeros.zero_())
                total[number].index_add_(0, steered.padded[: steered.count], (level * steered.scales)[: steered.count])
        return Residuals(tuple(total[:-1]), total[-1])


@dataclass(frozen=True, slots=True)
class Residuals:
    """What is added to each level of the UNet's way down, and to its middle block, for all rows of a batch."""

    down: tuple[torch.Tensor, ...]
    middle: torch.Tensor

    def arguments(self, rows: slice) -> dict[str, Any]:
        """As StepContribution.arguments."""
        return {
            "down_block_additional_residuals": tuple(level[rows] for level in self.down),
            "mid_block_additional_residual": self.middle[rows],
        }

    def hooked(self) -> AbstractContextManager[None]:
        """As StepContribution.hooked: nothing is changed."""
        return nullcontext()


class Controlnets:
    """The Conditioner of ControlNets."""

    def __init__(self, room: int, device: Device, settings: EngineSettings) -> None:
        """`room`: bytes of the device for all ControlNets' weights."""
        self._pool: WeightPool[Controlnet] = WeightPool(room)
        self._device = device
        self._settings = settings

    def has_room(self, files: Sequence[ControlnetFile], in_use: Collection[DeviceWeights]) -> bool:
        """As Conditioner's."""
        return self._pool.has_room({file.hash: self._bytes(file) for file in files}, in_use)

    def prepare(
        self,
        request: DenoiseRequest,
        text: Conditioning,
        files: Sequence[ControlnetFile],
        checkpoint: DenoiserWeights,
        timeline: Timeline,
        in_use: Collection[DeviceWeights],
    ) -> list[LaneControl]:
        """As Conditioner's."""
        for control in request.controls:
            _check_picture(control, (request.height, request.width, 3))
        needed = sum({file.hash: self._bytes(file) for file in files}.values())
        if needed > self._pool.room:
            raise DoesNotFit(
                f"the ControlNets {', '.join(repr(file.name) for file in files)} take {needed >> 20} MiB together, "
                f"there is room for {self._pool.room >> 20}",
                "controlnets",
            )
        kept = {weights.hash for weights in in_use} | {file.hash for file in files}
        return [
            self._prepared(control, self._controlnet(file, checkpoint, kept), timeline)
            for control, file in zip(request.controls, files, strict=True)
        ]

    def _prepared(self, control: Control, controlnet: Controlnet, timeline: Timeline) -> LaneControl:
        picture = hashlib.sha256(control.image.tobytes()).hexdigest()
        return LaneControl(
            weights=controlnet,
            span=timeline.span(control.start, control.end),
            origin=(controlnet.hash, picture, control.scale, control.start, control.end),
            seen=controlnet.look_at(control.image),
            scale=control.scale,
        )

    def _controlnet(self, file: ControlnetFile, checkpoint: DenoiserWeights, kept: Collection[str]) -> Controlnet:
        channels = int(checkpoint.vae.config.latent_channels)
        unet: Mapping[str, Any] = checkpoint.unet.config
        controlnet = self._pool.get(file.hash, self._bytes(file), lambda: self._load(file, unet, channels), kept)
        why = misfit(controlnet.config, unet, channels)
        if why is not None:
            raise ControlnetFolder.refused(file.name, why)
        return controlnet

    def _bytes(self, file: ControlnetFile) -> int:
        return file.source.numbers * self._device.dtype.itemsize

    def _load(self, file: ControlnetFile, unet: Mapping[str, Any], channels: int) -> Controlnet:
        source = file.source
        if source.config is not None and (why := misfit(source.config, unet, channels)) is not None:
            raise ControlnetFolder.refused(file.name, why)
        try:
            if files_state(source.files) != source.written:
                raise ControlnetFolder.refused(file.name, "was changed while the image waited: ask again")
            model = read_controlnet(source, unet, channels, self._device.torch_device, self._device.dtype)
        except (CheckpointError, OSError) as error:
            raise ControlnetFolder.unreadable(file.name, error, source.files[0].parent) from None
        memory_format = torch.channels_last if self._settings.channels_last else torch.contiguous_format
        model = model.to(memory_format=memory_format)
        use_attention(model, self._settings.attention)
        return Controlnet(file.hash, model, self._device.row_threads, memory_format)


def _check_picture(control: Control, expected: tuple[int, ...]) -> None:
    image = control.image
    if image.shape != expected or image.dtype != np.uint8:
        raise InvalidRequest(f"controlnets is {image.dtype} {image.shape}, expected uint8 {expected}", "controlnets")
