"""One image in flight: latents, history, step, conditioning, random state.

A Ticket is a request that waits for its place on the device; a Lane is one that has it. A lane knows its own sampler
table and nothing of the UNet or of the lanes beside it.
"""

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from deployments.engine.batcher import BatchKey
from deployments.engine.request import Conditioning, DenoiseRequest, Event, Priority
from deployments.engine.samplers import SamplerStep, SamplerTable

Sink = Callable[[Event | Exception], object]


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A DenoiseRequest that was submitted.

    text: the request's embeddings, still on the CPU. arrival: grows with submission. submitted: monotonic seconds.
    sink: gets the events, then one DenoiseResult or one exception, in the engine's thread.
    table: the sampler's, done once it is traced; None where the checkpoint's schedule wasn't known at submission,
        because it had never been loaded.
    """

    request: DenoiseRequest
    text: Conditioning
    key: BatchKey
    arrival: int
    submitted: float
    sink: Sink
    table: "Future[SamplerTable] | None" = None

    @property
    def deadline(self) -> float:
        """Monotonic time after which the request fails."""
        timeout = self.request.timeout_s
        return float("inf") if timeout is None else self.submitted + timeout


@dataclass(frozen=True, slots=True)
class LaneConditioning:
    """Conditions on the device, a row each: the prompt's and, with guidance, the negative prompt's after it.

    hidden_states: (rows, tokens, channels), the UNet's dtype.
    pooled: (rows, channels) and time_ids: (rows, 5 or 6), SDXL only.
    """

    hidden_states: torch.Tensor
    pooled: torch.Tensor | None = None
    time_ids: torch.Tensor | None = None


class Lane:
    """The state of a ticket on the device.

    latents: (channels, height, width), float32, on the device, as the scheduler holds them (not scaled for the model).
    device_s, step_s: what its steps have cost so far, as in Progress.
    """

    def __init__(
        self,
        ticket: Ticket,
        table: SamplerTable,
        conditioning: LaneConditioning,
        latents: torch.Tensor,
        generator: torch.Generator,
    ) -> None:
        """latents: as the first step needs them. generator: after the draws that made them."""
        self.ticket = ticket
        self.table = table
        self.conditioning = conditioning
        self.latents = latents
        self.generator = generator
        self.step = 0
        self.admitted = time.monotonic()
        self.last_progress = float("-inf")
        self.device_s = 0.0
        self.step_s = 0.0
        self._past_samples: deque[torch.Tensor] = deque(maxlen=table.past_samples)  # newest first, as the table has it
        self._past_outputs: deque[torch.Tensor] = deque(maxlen=table.past_outputs)
        self._drawn: list[torch.Tensor] | None = None

    @property
    def request(self) -> DenoiseRequest:
        """What was asked for."""
        return self.ticket.request

    @property
    def key(self) -> BatchKey:
        """What the lane must have in common with others to share a step."""
        return self.ticket.key

    @property
    def rows(self) -> int:
        """UNet rows a step: two with guidance, else one."""
        return self.conditioning.hidden_states.shape[0]

    @property
    def priority(self) -> Priority:
        """The request's priority."""
        return self.request.priority

    @property
    def tenant(self) -> str:
        """Whose time the lane uses."""
        return self.request.tenant

    @property
    def arrival(self) -> int:
        """The order of submission."""
        return self.ticket.arrival

    @property
    def submitted(self) -> float:
        """When it was submitted, monotonic seconds."""
        return self.ticket.submitted

    @property
    def evaluations(self) -> int:
        """UNet evaluations of the whole lane."""
        return len(self.table.steps)

    @property
    def current(self) -> SamplerStep:
        """The step to take next."""
        return self.table.steps[self.step]

    @property
    def finished(self) -> bool:
        """Every step is taken."""
        return self.step == len(self.table.steps)

    def terms(self, output: torch.Tensor) -> list[tuple[float, torch.Tensor]]:
        """(coefficient, tensor) pairs whose sum is the next latents, `output` being this step's model output.

        The noise is drawn once a step, also when the step is tried again.
        """
        step = self.current
        if self._drawn is None:
            self._drawn = [
                torch.randn(self.latents.shape, generator=self.generator).to(self.latents.device) for _ in step.noises
            ]
        return [
            *zip(step.samples, (self.latents, *self._past_samples), strict=False),
            *zip(step.outputs, (output, *self._past_outputs), strict=False),
            *zip(step.noises, self._drawn, strict=True),
        ]

    def charge(self, seconds: float, rows: int) -> None:
        """Account for a step of so many seconds that `rows` rows shared, this lane's among them."""
        self.device_s += seconds * self.rows / rows
        self.step_s += seconds

    def advance(self, latents: torch.Tensor, output: torch.Tensor) -> None:
        """Take the step: `latents` are the next ones, `output` the model output that led there."""
        self._past_samples.appendleft(self.latents)
        self._past_outputs.appendleft(output)
        self.latents = latents
        self._drawn = None
        self.step += 1
