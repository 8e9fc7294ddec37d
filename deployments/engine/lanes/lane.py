"""One image in flight: a Ticket while the request waits for its place on the device, a Lane once it has one."""

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deployments.engine.adapters.lora import Adapter
from deployments.engine.adapters.lora_file import LoraFile
from deployments.engine.batch import BatchKey
from deployments.engine.conditioning.protocol import ConditioningFiles, LaneCondition
from deployments.engine.errors import StateRefused
from deployments.engine.lanes.snapshot import LaneSnapshot, SnapshotFingerprint
from deployments.engine.memory.weight_pool import DeviceWeights
from deployments.engine.samplers.tables import SamplerStep, SamplerTable
from deployments.engine.types import Conditioning, DenoiseRequest, Event, Pixels, Priority, Progress
from deployments.engine.vae.folder import VaeFile
from deployments.engine.vae.requested import RequestedVae

Sink = Callable[[Event | Exception], object]


@dataclass(frozen=True, slots=True, eq=False)
class LaneFiles:
    """The files that a request names: its LoRAs by name, its conditionings, and its VAE."""

    loras: Mapping[str, LoraFile] = field(default_factory=dict)
    conditioning: ConditioningFiles = field(default_factory=dict)
    vae: VaeFile | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A DenoiseRequest that was submitted.

    Attributes:
        text: the prompts' embeddings, on the CPU.
        arrival: the order of submission.
        submitted: monotonic seconds.
        sink: gets the events, then one DenoiseResult or one exception, in the engine's thread.
        table: done once the sampler is traced; None if the checkpoint had never been loaded at submission.
        pending_files: done once the request's files are read; None if it names none.
    """

    request: DenoiseRequest
    text: Conditioning
    key: BatchKey
    arrival: int
    submitted: float
    sink: Sink
    table: "Future[SamplerTable] | None" = None
    pending_files: "Future[LaneFiles] | None" = None

    @property
    def deadline(self) -> float:
        """Monotonic time after which the request fails."""
        timeout = self.request.timeout_s
        return float("inf") if timeout is None else self.submitted + timeout

    @property
    def since(self) -> float:
        """When the image began to wait, here or in an earlier stage; monotonic seconds."""
        return self.submitted - self.request.waited_s

    @property
    def needed(self) -> "tuple[Future[Any], ...]":
        """What must be done before the ticket can become a lane."""
        return tuple(future for future in (self.table, self.pending_files) if future is not None)

    @property
    def files(self) -> LaneFiles:
        """The request's files, once they are read. Raises InvalidRequest, which names the file."""
        return LaneFiles() if self.pending_files is None else self.pending_files.result()

    @property
    def usable_files(self) -> LaneFiles:
        """The request's files, once they are read; none if a file was refused."""
        refused = self.pending_files is not None and self.pending_files.exception() is not None
        return LaneFiles() if refused else self.files


@dataclass(frozen=True, slots=True, eq=False)
class LaneConditioning:
    """A lane's text on the device, in the UNet's dtype: the prompt's row, then with guidance the negative prompt's.

    A prompt that is composed of several has a row for each of them, and one with regions a row for each region.

    Attributes:
        hidden_states: (rows, tokens, channels).
        pooled: (rows, channels), SDXL only.
        time_ids: (rows, 5 or 6), SDXL only.
        mask: (rows, tokens), 1 for text and 0 for padding; None if all texts of the lane have one length.
        weights: of the prompts that are composed; of a prompt alone it has no effect.
        shares: of the prompt and its regions, as `shares_of` returns them; None without regions.
    """

    hidden_states: torch.Tensor
    pooled: torch.Tensor | None = None
    time_ids: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    weights: tuple[float, ...] = (1.0,)
    shares: torch.Tensor | None = None

    @property
    def guided(self) -> bool:
        """Whether there is a row of the negative prompt."""
        return len(self.hidden_states) > len(self.weights)

    def unguided(self) -> "LaneConditioning":
        """The rows without the negative prompt's."""
        count = len(self.weights)
        pooled, time_ids, mask = (
            None if rows is None else rows[:count] for rows in (self.pooled, self.time_ids, self.mask)
        )
        return LaneConditioning(self.hidden_states[:count], pooled, time_ids, mask, self.weights, self.shares)


@dataclass(frozen=True, slots=True)
class LaneImage:
    """What a lane keeps of the request's image, on the device, float32.

    `mask`, `clean` and `noise` are all set if each step puts back what isn't to be painted, else none is.

    Attributes:
        mask: (1, height, width), 1 where the image is painted anew, else 0.
        clean: (channels, height, width), the image's latents.
        noise: (channels, height, width), added to them until the last step.
        hint: (channels + 1, height, width), mask and kept latents, for a UNet with further input channels.
    """

    mask: torch.Tensor | None = None
    clean: torch.Tensor | None = None
    noise: torch.Tensor | None = None
    hint: torch.Tensor | None = None


NO_IMAGE = LaneImage()


class Lane:
    """The state of a ticket on the device.

    Attributes:
        latents: (channels, height, width), float32, on the device, as the scheduler has them: not scaled for the model.
        step: UNet evaluations taken so far.
        vae: of the request; None for its checkpoint's own.
        admitted: monotonic seconds.
        device_s, step_s: what its steps have cost so far, as in Progress.
    """

    def __init__(
        self,
        ticket: Ticket,
        table: SamplerTable,
        text: LaneConditioning,
        latents: torch.Tensor,
        generator: torch.Generator,
        fingerprint: SnapshotFingerprint,
        edits: Sequence[tuple[int, LaneConditioning]] = (),
        image: LaneImage = NO_IMAGE,
        adapters: Sequence[Adapter] = (),
        conditions: Sequence[LaneCondition] = (),
        vae: RequestedVae | None = None,
        region_adapters: Sequence[Sequence[Adapter]] = (),
    ) -> None:
        """Create a lane before its first step.

        Args:
            ticket: the request.
            table: the sampler's coefficients.
            text: the prompts' rows.
            latents: (channels, height, width), float32, as the first step needs them.
            generator: random state on the CPU, after the draws that made the latents.
            fingerprint: goes into its snapshots.
            edits: (evaluation, text) pairs by rising evaluation: the text from that UNet evaluation on.
            image: what it keeps of the request's image.
            adapters: the UNet's LoRAs.
            conditions: what else conditions its steps.
            vae: of the request; None for its checkpoint's own.
            region_adapters: the UNet's LoRAs for each region's row; empty if all rows have `adapters`.
        """
        self.ticket = ticket
        self.table = table
        self._texts = ((0, text), *edits)
        self.latents = latents
        self.generator = generator
        self.fingerprint = fingerprint
        self.image = image
        self._adapters = adapters
        self._region_adapters = region_adapters
        self._conditions = conditions
        self.vae = vae
        self.step = 0
        self.admitted = time.monotonic()
        self.last_progress = float("-inf")
        self.device_s = 0.0
        self.step_s = 0.0
        self._past_samples: deque[torch.Tensor] = deque(maxlen=table.past_samples)  # newest first, as the table has it
        self._past_outputs: deque[torch.Tensor] = deque(maxlen=table.past_outputs)
        self._drawn: list[torch.Tensor] | None = None
        # what the last step returned, where the sampler looks at it and it isn't what the latents are
        self._reads_returned = image.mask is not None and table.reads_returned
        self._returned: torch.Tensor | None = None
        self._state_told = 0  # the step of it

    @property
    def request(self) -> DenoiseRequest:
        """The ticket's."""
        return self.ticket.request

    @property
    def key(self) -> BatchKey:
        """What lanes must have in common to share a step."""
        return self.ticket.key

    @property
    def text(self) -> LaneConditioning:
        """The prompts' rows for the next step."""
        return self._texts[bisect_right(self._texts, self.step, key=lambda change: change[0]) - 1][1]

    @property
    def conditions(self) -> tuple[LaneCondition, ...]:
        """What else conditions the next step."""
        return tuple(condition for condition in self._conditions if self.step in condition.span)

    @property
    def weights(self) -> frozenset[DeviceWeights]:
        """The weights that it needs on the device besides the checkpoint's: its conditions', at any step, its VAE."""
        needed = (*(condition.weights for condition in self._conditions), self.vae)
        return frozenset(weights for weights in needed if weights is not None)

    @property
    def file_hashes(self) -> Mapping[str, Mapping[str, str]]:
        """SHA-256 (hex) of its conditionings' files, by kind and name."""
        files = self.ticket.files.conditioning
        return {kind: {file.name: file.hash for file in of_kind} for kind, of_kind in files.items()}

    @property
    def rows(self) -> int:
        """UNet rows of the next step: two with guidance, else one; more with a composed prompt or regions."""
        return self.text.hidden_states.shape[0]

    @property
    def row_adapters(self) -> list[Sequence[Adapter]]:
        """The UNet's LoRAs for each row of the next step."""
        rows = [self._adapters] * self.rows
        rows[1 : 1 + len(self._region_adapters)] = self._region_adapters
        return rows

    @property
    def priority(self) -> Priority:
        """The request's priority."""
        return self.request.priority

    @property
    def tenant(self) -> str:
        """The request's tenant."""
        return self.request.tenant

    @property
    def arrival(self) -> int:
        """The order of submission."""
        return self.ticket.arrival

    @property
    def since(self) -> float:
        """When the image began to wait, here or in an earlier stage; monotonic seconds."""
        return self.ticket.since

    @property
    def evaluations(self) -> int:
        """UNet evaluations of the whole lane."""
        return len(self.table.steps)

    @property
    def guidance_scale(self) -> float:
        """Of the request, as the sampler takes it."""
        return self.request.guidance_scale * self.table.guidance_factor

    @property
    def current(self) -> SamplerStep:
        """The next step."""
        return self.table.steps[self.step]

    @property
    def finished(self) -> bool:
        """Whether every step is taken."""
        return self.step == len(self.table.steps)

    @property
    def owes_state(self) -> bool:
        """Whether a snapshot is due: `state_every` steps are taken since the last one."""
        every = self.request.state_every
        return every > 0 and not self.finished and self.step // every > self._state_told // every

    def update_terms(self, output: torch.Tensor, unguided: torch.Tensor) -> list[tuple[float, torch.Tensor]]:
        """(coefficient, tensor) pairs whose sum is the next latents.

        The noise is drawn on the host while the device computes, and once a step, even if the step is tried again.

        Args:
            output: (channels, height, width), float32, this step's guided model output.
            unguided: likewise, the one for the negative prompt; the prompt's where there is no guidance.
        """
        step = self.current
        if self._drawn is None:
            device = self.latents.device
            draw = partial(torch.randn, self.latents.shape, generator=self.generator, pin_memory=device.type == "cuda")
            self._drawn = [draw().to(device, non_blocking=True) for _ in step.noises]
        samples = [*zip(step.samples, (self.latents, *self._past_samples), strict=False)]
        if self._returned is not None:
            samples[0] = step.samples[0] - step.returned, self.latents
            samples.append((step.returned, self._returned))
        return [
            *samples,
            *zip(step.outputs, (output, *self._past_outputs), strict=False),
            *([(step.unguided, unguided)] if step.unguided else []),
            *zip(step.noises, self._drawn, strict=True),
        ]

    def charge(self, seconds: float, rows: int) -> None:
        """Charge the lane for a step of `seconds` that `rows` UNet rows shared, its own among them."""
        self.device_s += seconds * self.rows / rows
        self.step_s += seconds

    def advance(self, latents: torch.Tensor, output: torch.Tensor, returned: torch.Tensor) -> None:
        """Go on to the next step.

        Args:
            latents: (channels, height, width), float32, the next ones.
            output: likewise, the guided model output that led there.
            returned: likewise, the latents before what is kept of an image was put back.
        """
        self._past_samples.appendleft(self.latents)
        self._past_outputs.appendleft(output)
        self.latents = latents
        self._returned = returned if self._reads_returned else None
        self._drawn = None
        self.step += 1

    def progress(self, preview: Pixels | None, state: LaneSnapshot | None) -> Progress:
        """The lane's progress event."""
        return Progress(
            self.request.lane_id, self.step, self.evaluations, preview, self.device_s, self.step_s, state=state
        )

    def state(self) -> LaneSnapshot | None:
        """A snapshot of the lane, copied to the CPU; between two steps only. None before the first step."""
        if not self.step:
            return None
        self._state_told = self.step
        return LaneSnapshot(
            fingerprint=self.fingerprint,
            step=self.step,
            latents=np.array(self.latents.cpu()),
            past_samples=self._on_cpu(self._past_samples),
            past_outputs=self._on_cpu(self._past_outputs),
            generator_state=self.generator.get_state().numpy(),
            device_s=self.device_s,
            step_s=self.step_s,
            returned=None if self._returned is None else np.array(self._returned.cpu()),
        )

    def go_on_from(self, state: LaneSnapshot) -> None:
        """Go on, to the bit, from where `state` was taken.

        Raises:
            StateRefused: the snapshot isn't one of this lane; the lane is unchanged.
        """
        table = self.table
        state.check(
            self.fingerprint,
            steps=len(table.steps),
            past_samples=table.past_samples,
            past_outputs=table.past_outputs,
            returned=self._reads_returned,
        )
        try:
            self.generator.set_state(torch.from_numpy(np.array(state.generator_state)))
        except (RuntimeError, TypeError):
            raise StateRefused("the state's generator_state is of no CPU generator") from None
        device = self.latents.device
        self.latents = torch.from_numpy(np.array(state.latents)).to(device)
        self._past_samples.extend(torch.from_numpy(np.array(state.past_samples)).to(device))
        self._past_outputs.extend(torch.from_numpy(np.array(state.past_outputs)).to(device))
        if self._reads_returned:
            self._returned = torch.from_numpy(np.array(state.returned)).to(device)
        self.step, self.device_s, self.step_s = state.step, state.device_s, state.step_s
        self._state_told = state.step

    def _on_cpu(self, past: Collection[torch.Tensor]) -> npt.NDArray[np.float32]:
        stacked = torch.stack(tuple(past)).cpu() if past else torch.empty(0, *self.latents.shape)
        array: npt.NDArray[np.float32] = stacked.numpy()
        return array
